// What JavaScript adds to the leaderboard: headers that sort.
'use strict';
for (const table of document.querySelectorAll('.board')) {
  const body = table.tBodies[0], headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...header.childNodes);
    header.append(button);
    const keys = [...body.rows].map(row => row.cells[column].dataset.key).filter(key => key !== '');
    const numeric = keys.every(key => !Number.isNaN(Number(key)));
    button.addEventListener('click', () => {
      const direction = header.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
      for (const other of headers) other.removeAttribute('aria-sort');
      header.setAttribute('aria-sort', direction === 1 ? 'ascending' : 'descending');
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [a, b].map(row => row.cells[column].dataset.key);
        if (x === '' || y === '') return (x === '') - (y === '');
        return direction * (numeric ? x - y : x.localeCompare(y, 'en', {numeric: true}));
      });
      body.append(...rows);
    });
  });
}
