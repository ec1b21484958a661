"""The looks of data/page.py: system fonts, two colour schemes, nothing from elsewhere."""

# Six hues of like weight that stay apart for colour-blind eyes, a darker set on paper and a lighter one on black.
STYLE = """
:root {
  --paper: #fcfcfb; --card: #ffffff; --text: #1c1f24; --soft: #5c6470; --faint: #8a929e; --rule: #e4e6ea;
  --link: #2457c5; --note: #fff6e0; --note-rule: #e0a63a;
  --series-0: #2a5fd0; --series-1: #d4691a; --series-2: #178a68; --series-3: #9a4fb5; --series-4: #c23b4e;
    --series-5: #5d6b7d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --card: #1b1e24; --text: #e8eaee; --soft: #a7afbb; --faint: #7d8693; --rule: #2d323a;
    --link: #8db4ff; --note: #2b2414; --note-rule: #b98a2e;
    --series-0: #7ba6ff; --series-1: #f09a57; --series-2: #4cc79f; --series-3: #cd93e3; --series-4: #f07f8e;
      --series-5: #a3b0c0;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body {
  margin: 0; background: var(--paper); color: var(--text); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif;
}
main { max-width: 60rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0; }
h2 { font-size: 1.3rem; letter-spacing: -0.01em; margin: 0 0 0.9rem; scroll-margin-top: 1rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 0.6rem; }
p { margin: 0 0 0.9rem; max-width: 44rem; overflow-wrap: anywhere; }
.subtitle { color: var(--soft); font-size: 1.08rem; margin: 0.4rem 0 0; }
nav { display: flex; flex-wrap: wrap; gap: 0.35rem 1.3rem; margin-top: 1.4rem; padding-top: 0.8rem;
      border-top: 1px solid var(--rule); font-size: 0.92rem; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
section { margin-top: 2.6rem; }
.note { background: var(--note); border-left: 3px solid var(--note-rule); padding: 0.6rem 0.9rem;
  border-radius: 0 6px 6px 0; }
.empty { color: var(--faint); font-style: italic; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 0.8rem 1rem;
  overflow-x: auto;
      font: 0.86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
        margin: 0 0 1rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 0.75rem;
  margin: 0 0 1.2rem; }
.facts div { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 0.7rem 0.95rem; }
.facts dt { color: var(--soft); font-size: 0.82rem; }
.facts dd { margin: 0.1rem 0 0; font-size: 1.25rem; font-weight: 600; letter-spacing: -0.01em; overflow-wrap: anywhere;
            font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; margin: 0 0 1.2rem; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
caption { caption-side: top; text-align: left; color: var(--soft); padding-bottom: 0.45rem; }
th, td { padding: 0.38rem 1.5rem 0.38rem 0; text-align: left; vertical-align: baseline; overflow-wrap: break-word; }
th { color: var(--soft); font-weight: 600; font-size: 0.84rem; border-bottom: 1.5px solid var(--rule);
  white-space: nowrap; }
td { border-bottom: 1px solid var(--rule); max-width: 30rem; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
.chart { margin: 0 0 1.4rem; background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
  padding: 1rem 1rem 0.7rem; }
.chart figcaption { font-weight: 600; font-size: 0.95rem; margin: 0 0 0.5rem 0.2rem; }
.chart svg { display: block; width: 100%; height: auto; }
.chart text { font-family: inherit; font-variant-numeric: tabular-nums; }
.tick { fill: var(--faint); font-size: 11.5px; }
.axis { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--rule); stroke-width: 1; }
.base { stroke: var(--faint); stroke-width: 1; }
.line { fill: none; stroke: var(--ink); stroke-width: 1.9; stroke-linejoin: round; stroke-linecap: round; }
.band { fill: var(--ink); stroke: none; opacity: 0.16; }
.dot { fill: var(--card); stroke: var(--ink); stroke-width: 1.7; stroke-dasharray: none !important; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.3rem; margin: 0.4rem 0 0.2rem 0.2rem;
          font-size: 0.86rem; color: var(--soft); max-width: none; }
.legend span { display: inline-flex; align-items: center; gap: 0.45rem; }
.chart svg.key { width: 22px; height: 4px; flex: none; }
.strip { display: grid; gap: 1rem 0.8rem; margin: 0 0 1.4rem; }
.strip figure { margin: 0; min-width: 0; }
.strip img { display: block; width: 100%; height: auto; border-radius: 8px; border: 1px solid var(--rule);
  background: var(--card); }
.strip img.sharp { image-rendering: pixelated; }
.strip figcaption { margin-top: 0.35rem; font-size: 0.8rem; line-height: 1.35; color: var(--soft);
  overflow-wrap: anywhere; }
@media print { main { padding: 0; } .chart, .strip figure, tr { break-inside: avoid; } }
"""
