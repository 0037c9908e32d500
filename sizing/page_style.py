"""The page's own style sheet: layout on a wide and on a narrow screen, and on paper."""

from sizing.budget_bar import PARTS
from sizing.style import FONT, MONO, part_class, shapes, variables

_LAYOUT = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 FONT}
main{max-width:1180px;margin:0 auto;padding:32px 24px 48px}
h1{font-size:30px;line-height:1.2;margin:0 0 8px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:20px;margin:0 0 6px}h3{font-size:15px;margin:12px 0 4px}
p{margin:0 0 12px}.lead{font-size:18px}.soft,small,footer{color:var(--soft)}
small{display:block;font-size:12.5px;font-weight:400}
section{margin-top:40px}footer{margin-top:48px;font-size:13px;border-top:1px solid var(--rule);padding-top:12px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(168px,1fr));gap:12px;margin:20px 0 0}
.tiles div{background:var(--panel);border:1px solid var(--rule);border-radius:10px;padding:12px 14px}
.tiles dt{font-size:13px;color:var(--soft)}.tiles dd{margin:0;font-size:13.5px;color:var(--soft)}
.tiles dt+dd{font-size:23px;font-weight:650;color:var(--ink);line-height:1.25;overflow-wrap:anywhere}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;padding:0;margin:8px 0 14px;font-size:14px}
.legend li{display:flex;align-items:center;gap:7px}.legend i{width:14px;height:14px;border-radius:3px}
figure{margin:0 0 16px}figcaption{display:flex;flex-wrap:wrap;gap:2px 10px;align-items:baseline;margin-bottom:4px}
figcaption .soft{font-size:14px;margin-left:auto}
.bar{position:relative;display:flex;height:34px;border-radius:5px;box-shadow:0 0 0 1px var(--rule)}
.bar span{overflow:hidden;text-align:center;font-size:13px;line-height:34px;color:var(--on);min-width:1px}
.bar span:first-child{border-radius:5px 0 0 5px}.bar span:nth-last-child(2){border-radius:0 5px 5px 0}
.bar>b{position:absolute;top:-5px;bottom:-5px;width:2px;margin-left:-1px;background:var(--ink)}
.bar>b.edge{width:0;margin-left:-1px;background:none;border-left:2px dashed var(--no)}
.badge{border-radius:99px;padding:1px 10px;font-size:13px;font-weight:600;white-space:nowrap}
.v-fits{background:var(--fits-wash);color:var(--fits)}.v-close{background:var(--close-wash);color:var(--close)}
.v-no{background:var(--no-wash);color:var(--no)}.cell small{color:inherit}
.scroll{overflow-x:auto;margin:0 0 12px}.scroll:focus-visible{outline:2px solid var(--l0);outline-offset:2px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:8px 10px;text-align:right;vertical-align:top;border-bottom:1px solid var(--rule)}
thead th{font-weight:600;color:var(--soft);vertical-align:bottom}
th:first-child{text-align:left}tbody th{font-weight:650;white-space:nowrap}
.cards td.left,.cards th.left{text-align:left}

.cards small{text-wrap:balance}
.cards td small{min-width:92px}.best{color:var(--best);font-weight:700}
.terms td:last-child,.terms th:last-child{text-align:left}.terms td:nth-child(3){white-space:nowrap}
.terms tbody th,.terms tfoot th{font-weight:500}
tfoot{font-weight:650}
.matrix{border-collapse:separate;border-spacing:3px}
.matrix td,.matrix th{border:0;border-radius:5px;text-align:center;padding:6px 8px}
.matrix th:first-child{text-align:left}.matrix tbody th{white-space:normal;overflow-wrap:anywhere;font-weight:500}
.matrix td b{font-size:13.5px;white-space:nowrap}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(290px,1fr));gap:20px}
.charts svg{width:100%;height:auto;display:block}.charts figcaption{font-weight:600;font-size:14.5px}
details{border-top:1px solid var(--rule);padding:6px 0}details:last-child{border-bottom:1px solid var(--rule)}
summary{cursor:pointer;font-weight:600;padding:4px 0}
.log{list-style:none;margin:0;padding:10px 14px;background:var(--panel);border:1px solid var(--rule);border-radius:8px}
.log li{padding:4px 0}.log code{overflow-wrap:anywhere}
code{font:13.5px/1.5 MONO}
@media (max-width:680px){
main{padding:20px 16px 36px}h1{font-size:24px}.lead{font-size:16.5px}
.tiles{grid-template-columns:1fr 1fr}.tiles dt+dd{font-size:19px}figcaption .soft{margin-left:0;flex-basis:100%}
.cards thead{position:absolute;clip-path:inset(50%);height:1px;overflow:hidden}
.cards,.cards tbody,.cards tr,.cards td,.cards tbody th{display:block;width:auto}
.cards tr{border:1px solid var(--rule);border-radius:10px;margin-bottom:12px;padding:4px 12px 8px}
.cards tbody th{font-size:17px;border:0;padding:8px 0 2px}
.cards td,.cards td.left{display:flex;justify-content:space-between;gap:16px;
padding:5px 0;border:0;text-align:right}
.cards td::before{content:attr(data-h);color:var(--soft);font-weight:400;text-align:left;flex:none;max-width:45%}
.cards td.none,.cards tr.none{display:none}.matrix .w{position:absolute;clip-path:inset(50%)}
.matrix td,.matrix th{padding:5px 4px}.matrix small{font-size:11.5px}
.terms tr{display:grid;grid-template-columns:1fr auto 8.5em;border-bottom:1px solid var(--rule);padding:5px 0}
.terms td,.terms th{border:0;padding:1px 0 1px 8px}.terms th:first-child{padding-left:0}
.terms thead th:last-child{display:none}
.terms td:last-child{grid-column:1/-1;padding-left:0;color:var(--soft);font-size:13px;overflow-wrap:anywhere}
}
@media print{details>*{display:block}.scroll{overflow:visible}section{break-inside:avoid}}
"""


def page_style() -> str:
    """The style sheet as it stands in the page."""
    fills = "".join(
        f"span.{part_class(part)},i.{part_class(part)}{{background:var(--{part_class(part)})}}" for part in PARTS
    )
    unused = part_class("not used")
    missing = part_class("missing")
    stripes = f"repeating-linear-gradient(135deg,var(--{missing}) 0 7px,var(--no-wash) 7px 11px)"
    special = f"span.{unused}{{color:var(--soft)}}span.{missing},i.{missing}{{background:{stripes};color:var(--ink)}}"
    layout = _LAYOUT.replace("FONT", FONT).replace("MONO", MONO)
    return variables(":root") + layout + shapes() + fills + special
