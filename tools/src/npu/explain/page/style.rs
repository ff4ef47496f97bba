//! How the page looks, and the little that moves on it.

/// Colours that programs take turns in.
pub(super) const PROGRAMS: usize = 6;

/// Colours by variables, so that dark and light are one sheet.
pub(super) const STYLE: &str = "\
:root{--bg:#fbfcfd;--card:#fff;--ink:#18222d;--quiet:#5d6b7a;--line:#dde4ea;--edge:#93a3b2;--host:#e0662f;\
--p0:#2f77b8;--p1:#1f9a8a;--p2:#7a5fb5;--p3:#5a8f29;--p4:#b0568f;--p5:#8a7430;--track:#eef2f5;color-scheme:light}\
:root.dark{--bg:#10161d;--card:#18212b;--ink:#e6edf3;--quiet:#93a3b3;--line:#2b3845;--edge:#5d7088;--host:#f0803f;\
--p0:#4b98dd;--p1:#35b8a6;--p2:#9d83da;--p3:#7bb548;--p4:#d478b3;--p5:#b79c49;--track:#202b37;color-scheme:dark}\
*{box-sizing:border-box}body{font:14px/1.5 system-ui,'DejaVu Sans',sans-serif;margin:0 auto;max-width:1180px;\
padding:1.6rem 1.2rem 4rem;color:var(--ink);background:var(--bg)}\
header{display:flex;justify-content:space-between;align-items:center;gap:1rem}h1{font-size:1.5rem;margin:0;overflow-wrap:anywhere}\
h2{font-size:1.1rem;margin:2rem 0 .4rem}p{margin:.3rem 0}.quiet{color:var(--quiet)}code{font-size:.92em}\
button{font:inherit;color:var(--quiet);background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.2rem .7rem;cursor:pointer}\
.figures{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.1rem 0 .8rem}.figures div{flex:1;min-width:140px;background:var(--card);\
border:1px solid var(--line);border-radius:8px;padding:.6rem .9rem;color:var(--quiet)}.figures b{display:block;white-space:nowrap;font-size:1.45rem;color:var(--ink)}\
.bar{height:8px;border-radius:4px;background:var(--host);overflow:hidden;margin:.2rem 0 .6rem}.bar i{display:block;height:100%;background:var(--p0)}\
.picture{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px;margin:.4rem 0 1rem}\
.picture svg{display:block}.cut{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--host);border-radius:8px;\
padding:.5rem .9rem;margin:.5rem 0}.cut summary{cursor:pointer}table{border-collapse:collapse;width:100%;margin-top:.4rem}\
td,th{text-align:left;padding:.3rem .6rem .3rem 0;border-top:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}th{color:var(--quiet);font-weight:500}\
em{color:var(--host);font-style:normal;font-weight:600}text{font:10px system-ui,'DejaVu Sans',sans-serif;fill:var(--ink)}text.quiet{fill:var(--quiet)}\
text.op{fill:#fff;font-size:9px;text-anchor:middle;pointer-events:none}.edge{stroke:var(--edge);fill:none}.far{stroke-dasharray:2 3;opacity:.55}\
.axis{stroke:var(--line);fill:none}.host{fill:var(--host)}.h{stroke:var(--host)}.swatch,.key{display:inline-block;width:.8em;height:.8em;border-radius:3px;margin-right:.4em}\
.p0{fill:var(--p0);background:var(--p0)}.p1{fill:var(--p1);background:var(--p1)}.p2{fill:var(--p2);background:var(--p2)}\
.p3{fill:var(--p3);background:var(--p3)}.p4{fill:var(--p4);background:var(--p4)}.p5{fill:var(--p5);background:var(--p5)}.melted{opacity:.5}td:first-child{min-width:200px}.key.host{background:var(--host)}\
g[data-t]:hover rect,rect[data-t]:hover{stroke:var(--ink);stroke-width:1.5}.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;color:var(--quiet)}\
#tip{position:fixed;z-index:9;max-width:420px;white-space:pre-line;background:var(--ink);color:var(--bg);border-radius:6px;padding:.4rem .7rem;\
font-size:12px;pointer-events:none;overflow-wrap:anywhere}@media print{button{display:none}}";

/// The switch of colours, and the reason beside the pointer.
pub(super) const SCRIPT: &str = "\
'use strict';(()=>{const root=document.documentElement;\
if(matchMedia('(prefers-color-scheme: dark)').matches)root.classList.add('dark');\
document.getElementById('theme').onclick=()=>root.classList.toggle('dark');\
const tip=document.getElementById('tip');\
document.addEventListener('pointermove',e=>{const at=e.target.closest&&e.target.closest('[data-t]');\
tip.hidden=!at;if(!at)return;tip.textContent=at.dataset.t;\
const b=tip.getBoundingClientRect();\
tip.style.left=Math.max(4,Math.min(e.clientX+14,innerWidth-b.width-8))+'px';\
tip.style.top=(e.clientY+18+b.height>innerHeight?Math.max(4,e.clientY-b.height-10):e.clientY+18)+'px'});\
root.dataset.ready='yes'})();";
