"""The one script of the report's page: a click on a column's head sorts the table; without it all rows are shown."""

from __future__ import annotations

import base64
import hashlib

STYLE = """
th button { all: unset; cursor: pointer; color: inherit; }
th button:hover { color: var(--ink); }
th button:focus-visible { outline: 2px solid var(--best); outline-offset: 2px; }
th[aria-sort] button { color: var(--ink); }
th[aria-sort=ascending] button::after { content: "\\a0\\2191"; }
th[aria-sort=descending] button::after { content: "\\a0\\2193"; }
"""

SCRIPT = """
"use strict";
// The sort key of a cell: seconds of "3 min 5 s", the first number of "91.0 ± 1.0", nothing for a dash.
function key(text, isNumber) {
  if (!isNumber) return text;
  const time = text.match(/^(?:(\\d+) h ?)?(?:(\\d+) min ?)?(?:(\\d+) s)?$/);
  if (time && text) return 3600 * (time[1] || 0) + 60 * (time[2] || 0) + Number(time[3] || 0);
  const number = text.replace("−", "-").match(/^[+-]?\\d+([.]\\d+)?/);
  return number ? Number(number[0]) : null;
}
function sort(table, column) {
  const heads = Array.from(table.tHead.rows[0].cells), head = heads[column], body = table.tBodies[0];
  const isNumber = head.classList.contains("n"), before = head.getAttribute("aria-sort");
  const falls = before ? before === "ascending" : isNumber;
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", falls ? "descending" : "ascending");
  const rows = Array.from(body.rows, row => ({row, key: key(row.cells[column].textContent, isNumber)}));
  const order = isNumber ? (a, b) => a - b : new Intl.Collator("en", {numeric: true}).compare;
  const sign = falls ? -1 : 1;
  rows.sort((a, b) => (a.key === null) - (b.key === null) || (a.key === null ? 0 : sign * order(a.key, b.key)));
  body.append(...rows.map(entry => entry.row));
}
for (const table of document.querySelectorAll("table")) {
  Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent || "Name";
    button.addEventListener("click", () => sort(table, column));
    head.replaceChildren(button);
  });
}
"""

# In the page's Content-Security-Policy: the browser runs the script with this hash and no other.
POLICY = f"'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
