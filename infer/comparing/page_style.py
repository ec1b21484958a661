"""How a comparison's page looks and moves; the colours are those of data/page_style.py."""

STYLE = """
main { max-width: none; padding: 1.6rem 1.5rem 4rem; }
header nav { display: none; }
.bar { position: sticky; top: 0; z-index: 3; display: flex; flex-wrap: wrap; gap: 0.5rem 1.4rem; align-items: center;
  background: var(--paper); padding: 0.7rem 0; border-bottom: 1px solid var(--rule); margin: 1rem 0 0; }
.axis { display: flex; flex-wrap: wrap; gap: 0.3rem; align-items: center; border: 0; padding: 0; margin: 0;
  min-width: 0; }
.axis .name { color: var(--soft); font-size: 0.8rem; margin-right: 0.25rem; }
.chip { font: inherit; font-size: 0.84rem; color: var(--text); background: var(--card); border: 1px solid var(--rule);
  border-radius: 999px; padding: 0.12rem 0.7rem; cursor: pointer; max-width: 22rem; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
.chip[aria-pressed="false"] { color: var(--faint); text-decoration: line-through; background: none; }
.chip[aria-selected="true"] { background: var(--link); border-color: var(--link); color: var(--paper); }
.chip:focus-visible, .cell:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.size { display: flex; align-items: center; gap: 0.5rem; color: var(--soft); font-size: 0.8rem; margin-left: auto; }
.size input { accent-color: var(--link); width: 8rem; }
.hint { color: var(--faint); font-size: 0.8rem; margin: 0.7rem 0 0; max-width: none; }
.sheet { margin-top: 1rem; }
.sheet[hidden] { display: none; }
.scroll { overflow-x: auto; padding-bottom: 0.8rem; }
.matrix { border-collapse: separate; border-spacing: 0.5rem 0.5rem; font-size: 0.9rem; margin-left: -0.5rem; }
.matrix th { border: 0; padding: 0; white-space: normal; color: var(--text); font-size: 0.88rem; }
.matrix thead th { text-align: left; vertical-align: bottom; max-width: var(--side); overflow-wrap: anywhere; }
.matrix tbody th { position: sticky; left: 0; z-index: 1; background: var(--paper); width: 11rem; min-width: 6rem;
  text-align: right; vertical-align: middle; padding-right: 0.6rem; overflow-wrap: anywhere; }
.matrix td { border: 0; padding: 0; vertical-align: top; }
.matrix .off { display: none; }
.cell { display: block; padding: 0; border: 0; background: none; cursor: zoom-in; border-radius: 8px; font: inherit;
  color: inherit; text-align: left; }
.cell img { display: block; width: var(--side); height: auto; border-radius: 8px; border: 1px solid var(--rule);
  background: var(--card); }
.cell .note { display: block; background: none; border: 0; padding: 0.15rem 0 0; font-size: 0.78rem;
  color: var(--soft); max-width: var(--side); border-radius: 0; }
.cell[data-verdict="nan"] img { border-color: #c03030; }
.about { display: none; }
dl.settings { display: grid; grid-template-columns: auto 1fr; gap: 0.12rem 0.8rem; margin: 0; font-size: 0.82rem;
  line-height: 1.4; }
dl.settings dt { color: var(--soft); }
dl.settings dd { margin: 0; overflow-wrap: anywhere; }
#card { position: fixed; z-index: 9; max-width: 25rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: 10px; padding: 0.7rem 0.9rem; box-shadow: 0 8px 30px rgb(0 0 0 / 0.22); pointer-events: none; }
#card[hidden] { display: none; }
#zoom { width: 100vw; height: 100vh; max-width: none; max-height: none; margin: 0; border: 0; padding: 1.2rem;
  background: var(--paper); color: var(--text); }
#zoom::backdrop { background: var(--paper); }
#zoom .inside { display: grid; grid-template-columns: minmax(0, 1fr) 20rem; gap: 1.4rem; height: 100%; }
#zoom .pictures { display: flex; gap: 1rem; justify-content: center; align-items: center; min-height: 0; }
#zoom figure { margin: 0; flex: 1 1 0; min-width: 0; height: 100%; display: flex; flex-direction: column;
  justify-content: center; gap: 0.6rem; }
#zoom figure[hidden] { display: none; }
#zoom figure img { width: 100%; max-height: calc(100% - 2.4rem); object-fit: contain; }
#zoom.sharp figure img { image-rendering: pixelated; }
#zoom figcaption { text-align: center; color: var(--soft); font-size: 0.88rem; min-height: 1.4em; }
#zoom aside { overflow-y: auto; border-left: 1px solid var(--rule); padding: 0.4rem 0 0 1.2rem; }
#zoom .tools { display: flex; flex-wrap: wrap; gap: 0.4rem; margin-bottom: 1rem; }
kbd { font: 0.85em ui-monospace, Menlo, Consolas, monospace; border: 1px solid var(--rule); border-radius: 4px;
  padding: 0 0.3em; background: var(--card); }
.chart { max-width: 46rem; }
section { margin-top: 1.8rem; }
@media (max-width: 45rem) { #zoom .inside { grid-template-columns: 1fr; grid-template-rows: 60vh auto; }
  #zoom aside { border: 0; padding: 0; } .matrix tbody th { position: static; width: 6rem; } }
@media print { .bar, .hint { display: none; } .sheet[hidden] { display: block; } }
"""

SCRIPT = """
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
"""
