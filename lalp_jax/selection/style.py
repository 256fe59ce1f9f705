"""The looks of `report.html`: light and dark by the reader's setting, one accent, eight series colours."""

STYLE = """
:root {
  color-scheme: light dark;
  --bg: #fbfaf7; --ink: #22262b; --soft: #626a73; --line: #dedcd5; --card: #fff; --hot: 205 80 30;
  --c0: #0068a8; --c1: #c65100; --c2: #00835f; --c3: #a83a8e; --c4: #8f6a00; --c5: #4a5bd4;
  --c6: #7a5230; --c7: #555;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #14171a; --ink: #e3e6ea; --soft: #9aa3ad; --line: #30363d; --card: #1b1f24; --hot: 236 120 62;
    --c0: #56b4e9; --c1: #ff8f4f; --c2: #35c99d; --c3: #e58ac6; --c4: #e0b43c; --c5: #9fa9ff; --c6: #cda274;
    --c7: #b8b8b8;
  }
}
.c0 { --c: var(--c0) } .c1 { --c: var(--c1) } .c2 { --c: var(--c2) } .c3 { --c: var(--c3) }
.c4 { --c: var(--c4) } .c5 { --c: var(--c5) } .c6 { --c: var(--c6) } .c7 { --c: var(--c7) }

* { box-sizing: border-box }
body {
  margin: 0; background: var(--bg); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere;
}
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 }
h2 { font-size: 1.25rem; margin: 3rem 0 .25rem }
h3 { font-size: 1rem; margin: 0 0 .5rem }
ul { list-style: none; margin: 0; padding: 0 }
small, .note, summary, dt, thead { color: var(--soft) }
small { font-weight: 400; font-size: .875rem; margin-left: .5rem }
.note { margin: 0 0 1rem; max-width: 44rem }
header p { margin: .4rem 0 1.5rem; color: var(--soft) }
header p b, .note b { color: var(--ink) }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem }
.tiles li, article, figure {
  margin: 0; padding: .75rem 1rem;
  background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
}
.tiles li { color: var(--soft) }
.tiles b { display: block; font-size: 1.6rem; line-height: 1.25; color: var(--ink) }

.wide { overflow-x: auto }
table {
  border-collapse: collapse; width: 100%; margin-top: 1rem;
  font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal;
}
th, td { padding: .45rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child { text-align: left; padding-left: 0; min-width: 10rem; white-space: normal }
thead th { font-weight: 500; vertical-align: bottom; white-space: normal }
tbody th { font-weight: 600; overflow-wrap: anywhere }

.chart { display: block; width: 100%; height: auto }
.wide > .chart { min-width: 36rem }
.chart text { font-size: 12px; fill: var(--ink) }
.chart .axis { fill: var(--soft) }
.rule { stroke: var(--line); fill: none }
.chart circle, .chart rect, .swatch rect, .share rect { fill: var(--c) }
.share .track { fill: var(--line) }
.whisker { stroke: var(--c); stroke-width: 2; fill: none }
.dots { stroke: var(--c); stroke-width: 4; stroke-linecap: round; fill: none; opacity: .5 }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .75rem }
figcaption { margin-top: .25rem; font-size: .875rem }
figcaption small { display: block; margin: 0 }
.who { display: inline-grid; grid-template-columns: auto 1fr; gap: .4rem; align-items: baseline }

.key, .scale { display: flex; flex-wrap: wrap; margin-bottom: .75rem; font-size: .875rem }
.key { gap: .25rem 1.25rem }
.scale { font-variant-numeric: tabular-nums }
.scale li { padding: .15rem .7rem; border: 1px solid var(--line); margin-left: -1px }
article { margin-bottom: 1rem }
summary { cursor: pointer; font-size: .875rem }
.turn { white-space: pre-wrap; margin: .5rem 0; padding-left: .75rem; border-left: 3px solid var(--line) }
.turn b { display: block; font-size: .8rem; font-weight: 500; color: var(--soft) }
ol { list-style: none; margin: .6rem 0 0; padding: 0 }
ol li { display: grid; grid-template-columns: 4.5rem 1fr; gap: .75rem; margin-bottom: 2px }
.value { font: .85rem/1.8 ui-monospace, monospace; text-align: right; color: var(--soft) }
.step { white-space: pre-wrap; padding: .1rem .6rem; border-radius: .25rem }
.q1 { background: rgb(var(--hot) / .06) } .q2 { background: rgb(var(--hot) / .12) }
.q3 { background: rgb(var(--hot) / .19) } .q4 { background: rgb(var(--hot) / .27) }
.q5 { background: rgb(var(--hot) / .36) } .q6 { background: rgb(var(--hot) / .46) }
.qx { outline: 1px dashed var(--soft); outline-offset: -1px }

dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .2rem 1.5rem; margin: .5rem 0 }
dd { margin: 0 }
@media print { article, figure { break-inside: avoid } }
"""
