"""The review page: one file, no server; it saves decisions and brush strokes, never pixels."""

from __future__ import annotations

import html
import json
import re
import shlex
import zlib
from pathlib import Path

from zim.output import atomic_write
from zim_training.testset.candidates import FOLDER, read_candidates

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Review of TITLE</title><style>
body{font:15px/1.4 system-ui,sans-serif;margin:0;background:#f4f4f2;color:#222}
header{position:sticky;top:0;background:#fff;border-bottom:1px solid #ccc;padding:10px 16px;
display:flex;gap:18px;align-items:center;flex-wrap:wrap;z-index:2}
h1{font-size:17px;margin:0}main{padding:12px 16px;display:grid;gap:14px;
grid-template-columns:repeat(auto-fill,minmax(430px,1fr))}
section{background:#fff;border:2px solid #ccc;border-radius:8px;padding:8px}
section.yes{border-color:#2a8a3e}section.no{opacity:.55;border-color:#b33}
.pair{display:flex;gap:6px}.pair>*{width:50%;height:auto;aspect-ratio:auto;background:#777}
canvas{cursor:crosshair;touch-action:none;background:#777}
.row{display:flex;gap:8px;align-items:center;margin-top:6px;flex-wrap:wrap}
button{font:inherit;padding:3px 12px;border:1px solid #888;border-radius:5px;background:#fff;
cursor:pointer}button:focus-visible,select:focus-visible{outline:3px solid #4080d0}
button[aria-pressed=true]{background:#222;color:#fff}code{font-size:13px}
</style></head><body><header><h1>Review of TITLE</h1><span id="count"></span>
<label>brush <input id="radius" type="range" min="1" max="60" value="8"></label>
<label>paints <select id="value"><option value="1">object</option><option value="0.5">half</option>
<option value="0">background</option></select></label>
<button id="save">Save review.json</button><span>then: <code>zim-train testset --review review.json
--output COMMAND</code></span></header><main></main><script>
const rows=ROWS, memory='zim-review-MARK', main=document.querySelector('main');
const radius=document.getElementById('radius'), value=document.getElementById('value');
let state={};  // kept by the browser, so that closing the page loses nothing
try{state=JSON.parse(localStorage.getItem(memory))||{};}catch{}
function keep(){try{localStorage.setItem(memory,JSON.stringify(state));}catch{}}
function count(){keep();const all=Object.values(state),
yes=all.filter(s=>s.decision==='yes').length,
no=all.filter(s=>s.decision==='no').length;
document.getElementById('count').textContent=
`${yes} accepted, ${no} rejected, ${rows.length-yes-no} open`;}
for(const r of rows){const s=state[r.key]??={decision:null,level:r.level,strokes:[]};
const el=document.createElement('section');
el.innerHTML=`<div class="pair"><img alt="picture ${r.image}" loading="lazy"
src="FOLDER/img/${r.image}.png"><canvas width="${r.size[0]}" height="${r.size[1]}"
aria-label="matte ${r.key}, paint to repair"></canvas></div>
<div class="row"><b>${r.key}</b><button data-d="yes">accept</button><button data-d="no">reject
</button><label>level <select><option>fine</option><option>coarse</option></select></label>
<button data-undo>undo stroke</button><span>soft ${(100*r.soft).toFixed(0)} %</span></div>`;
main.append(el);const canvas=el.querySelector('canvas'), ctx=canvas.getContext('2d');
const level=el.querySelector('select');level.value=s.level;
level.onchange=()=>{s.level=level.value;keep();};
const img=new Image();img.src=`FOLDER/matte/${r.key}.png`;
function draw(){ctx.clearRect(0,0,canvas.width,canvas.height);ctx.drawImage(img,0,0);
for(const k of s.strokes){const g=Math.round(255*k.alpha);ctx.strokeStyle=ctx.fillStyle=
`rgb(${g},${g},${g})`;ctx.lineWidth=2*k.radius;ctx.lineCap=ctx.lineJoin='round';
ctx.beginPath();k.points.forEach((p,i)=>i?ctx.lineTo(...p):ctx.moveTo(...p));
if(k.points.length<2){ctx.arc(...k.points[0],k.radius,0,7);ctx.fill();}else ctx.stroke();}}
img.onload=draw;let now=null;
function at(e){const b=canvas.getBoundingClientRect();return[
Math.round((e.clientX-b.left)*canvas.width/b.width),
Math.round((e.clientY-b.top)*canvas.height/b.height)];}
canvas.onpointerdown=e=>{canvas.setPointerCapture(e.pointerId);
now={alpha:+value.value,radius:+radius.value*canvas.width/canvas.getBoundingClientRect().width,
points:[at(e)]};s.strokes.push(now);draw();};
canvas.onpointermove=e=>{if(now){now.points.push(at(e));draw();}};
canvas.onpointerup=()=>{now=null;decide('yes');};
function decide(d){s.decision=d;el.className=d;for(const b of el.querySelectorAll('[data-d]'))
b.setAttribute('aria-pressed',b.dataset.d===d);count();}
for(const b of el.querySelectorAll('[data-d]'))b.onclick=()=>decide(b.dataset.d);
el.querySelector('[data-undo]').onclick=()=>{s.strokes.pop();draw();keep();};
if(s.decision)decide(s.decision);}
count();document.getElementById('save').onclick=()=>{const accepted={};
for(const[k,s]of Object.entries(state))if(s.decision==='yes')
accepted[k]={level:s.level,strokes:s.strokes};
const a=document.createElement('a');a.download='review.json';a.href=URL.createObjectURL(
new Blob([JSON.stringify({accepted},null,1)],{type:'application/json'}));a.click();};
</script></body></html>
"""


def write_page(out: Path) -> Path:
    """Write ``review.html`` beside the candidates and return its path."""
    rows = json.dumps(read_candidates(out)).replace("<", "\\u003c")
    values = {"TITLE": html.escape(out.name), "COMMAND": html.escape(shlex.quote(out.name))}
    # decisions about other candidates are not taken over
    values |= {"FOLDER": FOLDER, "ROWS": rows, "MARK": f"{zlib.crc32(rows.encode()):08x}"}
    text = re.sub("|".join(values), lambda found: values[found[0]], _PAGE)
    atomic_write(out / "review.html", text.encode())
    return out / "review.html"
