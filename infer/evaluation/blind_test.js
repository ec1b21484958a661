const tuned = JSON.parse(document.getElementById('key').textContent);
// Wilson's interval, as in data/metrics/statistics.py: the page works without Python
function wilson(k, n) {
  const z = 1.959964, p = k / n, d = 1 + z * z / n;
  const m = (p + z * z / (2 * n)) / d, h = z / d * Math.sqrt(p * (1 - p) / n + z * z / (4 * n * n));
  return [k === 0 ? 0 : m - h, k === n ? 1 : m + h];
}
function count(question) {
  let k = 0, n = 0;
  tuned.forEach((side, i) => {
    const chosen = document.querySelector(`input[name="q${question}-${i}"]:checked`);
    if (chosen) { n += 1; k += chosen.value === side ? 1 : 0; }
  });
  if (!n) return 'nothing chosen yet';
  const [low, high] = wilson(k, n).map(x => (100 * x).toFixed(0));
  return `tuned chosen in ${k} of ${n}: ${(100 * k / n).toFixed(0)} % (95 % ${low} to ${high})`;
}
document.getElementById('show-result').addEventListener('click', () => {
  const lines = [0, 1].map(q => document.getElementById('question' + q).textContent + ' ' + count(q));
  document.getElementById('result').textContent = lines.join('\n');
});
