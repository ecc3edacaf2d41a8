"""The report's style sheet, apart from the code that fills the page."""

STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf7;--card:#fff;--ink:#22252b;--soft:#6d7078;--line:#e5e2da;
--track:#efece5;--ground_truth:#5b7f95;--resynthesis:#7d9b76;--prediction:#c96f4a;--chance:#b5b0a6;
--mark:#fbe1d3;--gone:#a6766a}
@media (prefers-color-scheme:dark){:root{--paper:#16181c;--card:#1e2126;--ink:#e6e4df;--soft:#989aa1;
--line:#30343b;--track:#2a2e34;--ground_truth:#7fa6bd;--resynthesis:#9bbd92;--prediction:#e28a63;
--chance:#77746d;--mark:#5a3426;--gone:#c49a8d}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 ui-sans-serif,system-ui,-apple-system,
"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
header,main,footer{max-width:1120px;margin:0 auto;padding:0 24px}
header{padding-top:56px}
h1{font-size:34px;font-weight:600;letter-spacing:-.02em;margin:0 0 8px}
h2{font-size:24px;font-weight:600;letter-spacing:-.01em;margin:56px 0 20px}
h3{font-size:15px;font-weight:600;color:var(--soft);margin:36px 0 14px}
.lead{font-size:18px;color:var(--soft);max-width:44em;margin:0 0 28px}
.rungs{list-style:none;margin:0;padding:0;display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));
gap:16px 28px;font-size:14px;color:var(--soft)}
.rungs li{display:flex;gap:10px}.rungs b{color:var(--ink);font-weight:600}
.dot{flex:none;display:inline-block;width:9px;height:9px;border-radius:50%;margin-top:6px;background:var(--dot)}
.ground_truth{--dot:var(--ground_truth)}.resynthesis{--dot:var(--resynthesis)}
.prediction{--dot:var(--prediction)}.chance{--dot:var(--chance)}
nav{margin-top:28px;padding-top:14px;border-top:1px solid var(--line);font-size:14px}
nav a{margin-right:18px;color:var(--prediction);text-decoration:none}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(186px,1fr));gap:28px}
figure{margin:0}figcaption{font-size:14px;font-weight:600;margin-bottom:10px}
small{font-weight:400;color:var(--soft);font-size:12px}
svg{width:100%;height:auto;display:block}
.tick{stroke:var(--ink);stroke-width:1.5}
.track{fill:var(--track)}.bar{fill:var(--dot)}.whisker{stroke:var(--ink);fill:none;opacity:.65}
svg text{font-size:11px;fill:var(--ink)}
.numbers{margin-top:24px}.numbers summary{cursor:pointer;color:var(--soft);font-size:14px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;margin-top:14px;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:6px 22px 6px 0;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child{text-align:left;font-weight:400}thead th{font-weight:600}
td small{margin-left:8px}th .dot{margin-right:7px}.none{color:var(--soft)}.count td,.count th{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(330px,1fr));gap:20px}
article{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px}
.top{display:flex;gap:14px}
.top img,.blank{flex:none;width:128px;height:128px;border-radius:8px;object-fit:cover;background:var(--track)}
.said{min-width:0}.key{margin:0 0 4px;font-size:11px;color:var(--soft);overflow-wrap:anywhere}
.ref{margin:0;font-size:14px;line-height:1.4}
.said details{font-size:13px;line-height:1.4;color:var(--soft);margin-top:6px}.said summary{cursor:pointer}
.said ul{margin:4px 0 0;padding:0 0 0 14px}
.voice{margin-top:12px;padding-top:10px;border-top:1px solid var(--line)}
.who{margin:0 0 4px;font-size:12px;color:var(--soft);display:flex;gap:7px}.who .dot{margin-top:5px}
audio{width:100%;height:32px}
.heard,.strict{margin:6px 0 0}.heard{font-size:15px}.prediction .heard{font-weight:600}
.strict{font-size:13px;color:var(--soft)}.strict::before{content:"strict ear: ";opacity:.75}
mark{background:var(--mark);color:inherit;border-radius:3px;padding:0 3px}
del{color:var(--gone);opacity:.85;font-weight:400}
a{color:var(--prediction)}
footer{padding-bottom:64px;font-size:14px;color:var(--soft)}footer h2{color:var(--ink);font-size:18px}
"""
