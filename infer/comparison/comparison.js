'use strict';
const all = (what, where = document) => [...where.querySelectorAll(what)];
const one = (what, where = document) => where.querySelector(what);
const sheets = all('.sheet'), tabs = all('[data-tab]'), zoom = one('#zoom'), card = one('#card');
const hidden = {x: new Set(), y: new Set()};
let z = 0, open = null, pinned = null;

const at = cell => cell.dataset.at.split(',').map(Number);
const find = place => one(`.cell[data-at="${place.join(',')}"]`);
const shown = cell => cell && !cell.closest('.off') && !cell.closest('[hidden]');

function choose(index) {
  z = (index + sheets.length) % sheets.length;
  sheets.forEach((sheet, number) => { sheet.hidden = number !== z; });
  tabs.forEach((tab, number) => {
    tab.setAttribute('aria-selected', number === z);
    tab.tabIndex = number === z ? 0 : -1;
  });
}

function filter(chip) {
  const axis = chip.dataset.axis, value = chip.dataset.value, off = hidden[axis];
  const total = all(`.chip[data-axis="${axis}"]`).length;
  if (off.has(value)) off.delete(value);
  else if (off.size < total - 1) off.add(value);
  chip.setAttribute('aria-pressed', !off.has(value));
  all(`[data-${axis}="${value}"]`).forEach(part => part.classList.toggle('off', off.has(value)));
}

function step(cell, dx, dy, dz) {
  let [x, y, layer] = at(cell);
  for (let tries = 0; tries < 2000; tries++) {
    x += dx; y += dy; layer += dz;
    const next = find([x, y, layer]);
    if (!next) return null;
    if (dz) choose(layer);
    if (shown(next)) return next;
  }
  return null;
}

function about(cell) { return one('.about', cell.parentElement).innerHTML; }

function show(cell) {
  open = cell;
  one('#zoom-now img').src = one('img', cell).src;
  one('#zoom-now img').alt = one('img', cell).alt;
  one('#zoom-now figcaption').textContent = cell.dataset.label;
  one('#zoom-about').innerHTML = about(cell);
  const pin = one('#zoom-pin');
  pin.hidden = !pinned || pinned === cell;
  if (pinned) {
    one('img', pin).src = one('img', pinned).src;
    one('figcaption', pin).textContent = 'pinned: ' + pinned.dataset.label;
  }
  if (!zoom.open) zoom.showModal();
  leave();
}

function pin() { pinned = pinned === open ? null : open; show(open); }

function hover(cell, x, y) {
  card.innerHTML = about(cell);
  card.hidden = false;
  const box = card.getBoundingClientRect(), gap = 16;
  const left = x + gap + box.width > innerWidth ? x - gap - box.width : x + gap;
  const top = Math.min(y + gap, innerHeight - box.height - 8);
  card.style.left = Math.max(8, left) + 'px';
  card.style.top = Math.max(8, top) + 'px';
}

function leave() { card.hidden = true; }

const moves = {ArrowRight: [1, 0, 0], ArrowLeft: [-1, 0, 0], ArrowDown: [0, 1, 0], ArrowUp: [0, -1, 0],
               ']': [0, 0, 1], '[': [0, 0, -1], PageDown: [0, 0, 1], PageUp: [0, 0, -1]};

document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches('input')) return;
  const move = moves[event.key], cell = event.target.closest('.cell');
  if (zoom.open) {
    if (move) { const next = step(open, ...move); if (next) show(next); event.preventDefault(); }
    if (event.key === 'p') pin();
    if (event.key === 's') zoom.classList.toggle('sharp');
    return;
  }
  if (move && cell) { const next = step(cell, ...move); if (next) next.focus(); event.preventDefault(); return; }
  if (move && event.target.matches('[data-tab]')) { choose(z + move[0] + move[2]); tabs[z].focus(); return; }
  if ((event.key === '[' || event.key === ']') && sheets.length > 1) choose(z + move[2]);
  if (/^[1-9]$/.test(event.key) && Number(event.key) <= sheets.length) choose(Number(event.key) - 1);
  if (event.key === 'Escape') leave();
});
all('.cell').forEach(cell => {
  cell.addEventListener('click', () => show(cell));
  cell.addEventListener('mousemove', event => hover(cell, event.clientX, event.clientY));
  cell.addEventListener('mouseleave', leave);
  cell.addEventListener('focus', () => {
    if (!cell.matches(':focus-visible')) return;
    const box = cell.getBoundingClientRect();
    hover(cell, box.right - 8, box.top);
  });
  cell.addEventListener('blur', leave);
});
all('.chip[data-axis]').forEach(chip => chip.addEventListener('click', () => filter(chip)));
tabs.forEach((tab, index) => tab.addEventListener('click', () => choose(index)));
one('#zoom-close').addEventListener('click', () => zoom.close());
one('#zoom-pin-it').addEventListener('click', pin);
one('#zoom-sharp').addEventListener('click', () => zoom.classList.toggle('sharp'));
zoom.addEventListener('close', () => { if (open) open.focus(); });
const size = one('#size');
size.addEventListener('input', () => document.documentElement.style.setProperty('--side', size.value + 'px'));
document.documentElement.style.setProperty('--side', size.value + 'px');
choose(0);
