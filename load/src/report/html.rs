//! A report as one page that needs nothing else: no script, no font, no picture from anywhere.

use super::Report;
use super::plot::escape;
use super::plots::plots;

const STYLE: &str = "\
:root{color-scheme:light dark;--text:#1b1f24;--dim:#667;--line:#8883;--main:#2563a8;--bad:#c0392b;--good:#2a8050;--back:#fff}\
@media(prefers-color-scheme:dark){:root{--text:#e6e8eb;--dim:#9aa3ad;--main:#6ea8e5;--bad:#ef7f72;--good:#6cc596;--back:#15181c}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--back);max-width:760px;margin:2em auto;padding:0 1em}\
h1{font-size:1.3em}h2{font-size:1.05em;margin-top:2em}pre{white-space:pre-wrap;font-size:12.5px;line-height:1.45}\
svg{width:100%;height:auto;margin:.6em 0}svg text{font-size:11px;fill:var(--dim)}svg .title{font-size:13px;fill:var(--text)}\
.grid{stroke:var(--line)}.bar,.dot,.good{fill:var(--main)}.dot{opacity:.55}.main,.thin{fill:none;stroke:var(--main);stroke-width:2}\
.thin{stroke-width:1;opacity:.7}.missed{fill:var(--back);stroke:var(--bad);stroke-width:1.5}.failed{fill:var(--bad)}\
.band{fill:var(--bad);opacity:.18}svg .fault{fill:var(--bad)}";

pub fn html(report: &Report) -> String {
    let model = report.settings["model"].as_str().unwrap_or("a model");
    let title = escape(&format!("{model} under load"));
    let settings = serde_json::to_string_pretty(&report.settings).unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head>\n\
         <body><h1>{title}</h1>\n<pre>{}</pre>\n{}\n<h2>Settings</h2><pre>{}</pre>\n<p>{}</p></body></html>\n",
        escape(&report.to_string()),
        plots(report),
        escape(&settings),
        escape(&report.made_by)
    )
}
