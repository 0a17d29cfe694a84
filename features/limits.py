"""The most that framebank takes from a file that someone else made. Real data stays far below all of these.

They bound memory and time: what a file of these sizes can make a command allocate stays under 2 GB beyond its usual
need. docs/security.md lists them.
"""

from __future__ import annotations

KB, MB = 1 << 10, 1 << 20

LARGEST_NUMBER = 1e38  # of any label, coordinate or prediction; float32 can still hold it
LARGEST_COORDINATE = 1e6  # of a camera's numbers, px
GREATEST_HEIGHT = 20.0  # of a camera above the road, in m; a larger number must be in another unit
TEXT_BYTES = MB  # of a config, a sweep, a camera's numbers or a calibration.txt
NESTING = 64  # of lists and tables in JSON and TOML
JSON_BYTES = 32 * MB  # a parsed value takes up to 25 times as much memory
VEHICLES = 1000  # in one annotation
CSV_BYTES = 512 * MB
CSV_CELLS = 10_000_000  # rows times columns: a million frames with ten columns
CSV_CELL = 128 * KB  # characters, Python's own limit
ZIP_ENTRIES = 1_000_000
ZIP_RATIO = 200  # of all contents to the archive's size, beyond FILE_BYTES
FILE_BYTES = 256 * MB  # of an image, or of any other entry of a zip
IMAGE_PIXELS = 40_000_000  # of an image or a video's frame; 8K has 33 million
VIDEO_FRAMES = 10_000_000  # four days at 30 frames per second
WINDOW_FRAMES = 10_000
NETWORK_PIXELS = 16_384  # width or height of the network's input
LARGEST_LAYER = 65_536  # units of a layer of a head
MODEL_OBJECTS = 20_000  # layers of a model, initialisers and the like; NASNetLarge has 7,000
MODEL_TENSOR = 1 << 27  # numbers that a layer puts out for one example
SPARE_PARAMETERS = 1_000_000  # that a model may declare beyond those whose values its file holds
SWEEP_RUNS = 100_000
PROCESSES = 4096  # or threads, that a config asks for

SLOWEST_RATE, FASTEST_RATE = 1e-6, 1e6  # frames per second
