// Tables of class `sortable` get buttons in their headers, and the filter that belongs to them is shown.
'use strict';
for (const table of document.querySelectorAll('table.sortable')) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows];

  const valueOf = (row, column, kind) => {
    const cell = row.cells[column];
    if (kind === 'text') return cell.textContent.trim().toLowerCase();
    return cell.dataset.value === '' ? null : Number(cell.dataset.value);
  };

  const sort = (head, kind) => {
    const up = head.getAttribute('aria-sort') !== 'ascending';
    const column = heads.indexOf(head);
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    rows.sort((one, two) => {
      const a = valueOf(one, column, kind), b = valueOf(two, column, kind);
      if (a === null || b === null) return (a === null) - (b === null);  // What is missing stays last.
      return (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1);
    });
    body.append(...rows);
  };

  for (const head of heads.filter(one => one.dataset.sort)) {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    button.addEventListener('click', () => sort(head, head.dataset.sort));
    head.append(button);
  }

  const filter = document.querySelector(`.filter[data-for="${table.id}"]`);
  if (!filter) continue;
  const [name, says, status] = ['input', 'select', '[role=status]'].map(one => filter.querySelector(one));
  const apply = () => {
    const wanted = name.value.trim().toLowerCase();
    for (const row of rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted) ||
        (says.value !== '' && row.dataset.says !== says.value);
    }
    status.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} shown`;
  };
  name.addEventListener('input', apply);
  says.addEventListener('change', apply);
  filter.hidden = false;
  apply();  // A browser may have kept what was typed before the page was loaded again.
}

// A point of a chart says what it is below the chart: under a mouse, or at a touch.
for (const figure of document.querySelectorAll('figure')) {
  const points = figure.querySelectorAll('.says');
  if (!points.length) continue;
  const line = document.createElement('p');
  line.className = 'quiet';
  line.setAttribute('role', 'status');
  figure.append(line);
  for (const point of points) {
    for (const event of ['pointerenter', 'click']) {
      point.addEventListener(event, () => { line.textContent = point.dataset.says; });
    }
  }
}

// What is wider than its place says so: by a shadow, on a phone in words too.
for (const part of document.querySelectorAll('.scroll')) {
  const more = document.createElement('p');
  more.className = 'more';
  more.textContent = 'more to the right →';
  more.setAttribute('aria-hidden', 'true');
  part.before(more);
  const tell = () => { more.hidden = part.scrollWidth - part.clientWidth - part.scrollLeft < 4; };
  part.addEventListener('scroll', tell);
  new ResizeObserver(tell).observe(part);
}

// Pictures open larger, and close by a click or Escape.
for (const picture of document.querySelectorAll('.faces img')) {
  const button = document.createElement('button');
  button.type = 'button';
  picture.replaceWith(button);
  button.append(picture);
  button.addEventListener('click', () => {
    const dialog = document.createElement('dialog');
    const large = picture.cloneNode();
    const caption = document.createElement('p');
    caption.textContent = picture.alt;
    dialog.append(large, caption);
    dialog.addEventListener('click', () => dialog.close());
    dialog.addEventListener('close', () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  });
}
