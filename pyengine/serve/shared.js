// What the project's pages are made with: elements, what a browser keeps, Markdown.
"use strict";
const $ = id => document.getElementById(id);
const store = {  // a browser may refuse both
  get(name) { try { return JSON.parse(localStorage.getItem(name)); } catch { return null; } },
  put(name, value) { try { localStorage.setItem(name, JSON.stringify(value)); } catch {} },
};
const session = {  // until the tab closes
  get(name) { try { return JSON.parse(sessionStorage.getItem(name)); } catch { return null; } },
  put(name, value) { try { sessionStorage.setItem(name, JSON.stringify(value)); return true; } catch { return false; } },
};

function make(tag, options = {}, ...children) {
  const {dataset, style, on, ...properties} = options;
  const element = Object.assign(document.createElement(tag), properties);
  Object.assign(element.dataset, dataset);
  for (const [name, value] of Object.entries(style || {})) element.style.setProperty(name, value);
  for (const [name, handler] of Object.entries(on || {})) element.addEventListener(name, handler);
  element.append(...children);
  return element;
}

function copier(text) {  // a button
  const button = make("button", {textContent: "Copy", on: {click: async () => {
    try { await navigator.clipboard.writeText(text()); button.textContent = "Copied"; }
    catch { button.textContent = "The browser forbids it"; }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }}});
  return button;
}

// Markdown as models write it, in elements: fences, headings, rules, quotes, tables, lists; `code`, **bold**, *italics*,
// links. A line's end stays one. Looking inside shows what was really written.
const ITEM = /^( *)([-*+]|\d{1,9}[.)]) +(.*)/, FENCE = /^ {0,3}(`{3,}|~{3,}) *([\w+#.-]*)[^`]*$/, ROW = /^ *\|.*\| *$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/, HEADING = /^(#{1,6}) +(.*?)[ #]*$/, QUOTE = /^ *> ?/;
const BLOCKS = [/^\s*$/, ITEM, FENCE, ROW, RULE, HEADING, QUOTE];
const MARKED = new RegExp([
  /(`+)(?<code>[^`]|[^`].*?[^`])\1(?!`)/, /\*\*(?=\S)(?<bold>.+?)(?<=\S)\*\*/, /(?<![\w*])\*(?=[^\s*])(?<star>.+?)(?<=\S)\*(?![\w*])/,
  /(?<!\w)_(?=\S)(?<line>.+?)(?<=\S)_(?!\w)/, /\[(?<name>[^\]]+)\]\((?<url>https?:\/\/[^\s()]+)\)/, /\\(?<plain>[\\`*_{}[\]()#+.!|>~-])/,
].map(part => part.source).join("|"), "gs");

const markdown = text => blocks(text.split("\n"));

function blocks(lines) {
  const made = [];
  let i = 0;
  const take = test => { const from = i; while (i < lines.length && test(lines[i])) i++; return lines.slice(from, i); };
  while (i < lines.length) {
    const line = lines[i];
    let found;
    if ((found = FENCE.exec(line))) {
      i++;
      const code = take(next => !next.trimStart().startsWith(found[1])).join("\n");
      i++;
      made.push(make("div", {className: "code"}, make("div", {}, found[2] || "code", copier(() => code)),
        make("pre", {}, make("code", {textContent: code}))));
    } else if (ITEM.test(line) && !RULE.test(line)) made.push(list());
    else if (ROW.test(line) && /^[ |:-]*-[ |:-]*$/.test(lines[i + 1] || "")) made.push(table(take(next => ROW.test(next))));
    else if (QUOTE.test(line)) made.push(make("blockquote", {}, ...blocks(take(next => QUOTE.test(next)).map(next => next.replace(QUOTE, "")))));
    else if ((found = HEADING.exec(line))) { i++; made.push(make(`h${Math.min(6, found[1].length + 2)}`, {}, ...inline(found[2]))); }
    else if (RULE.test(line)) { i++; made.push(make("hr")); }
    else if (!line.trim()) i++;
    else {
      const first = i;
      made.push(make("p", {}, ...inline(take(next => i === first || !BLOCKS.some(block => block.test(next))).join("\n"))));
    }
  }
  return made;

  function list() {
    const start = ITEM.exec(lines[i]), indent = start[1].length, ordered = /\d/.test(start[2]);
    const element = make(ordered ? "ol" : "ul", ordered ? {start: parseInt(start[2])} : {});
    const belongs = at => at < lines.length && (lines[at].trim() ? /^ */.exec(lines[at])[0].length > indent : belongs(at + 1));
    for (let item; (item = ITEM.exec(lines[i] ?? "")) && /\d/.test(item[2]) === ordered && item[1].length >= indent;) {
      const own = [item[3]], margin = new RegExp(`^ {0,${indent + item[2].length + 1}}`);
      for (i++; belongs(i); i++) own.push(lines[i].replace(margin, ""));
      element.append(make("li", {}, ...blocks(own)));
      let next = i;
      while (lines[next]?.trim() === "") next++;
      if (ITEM.test(lines[next] ?? "")) i = next;
    }
    return element;
  }
}

function table(rows) {
  const cells = row => row.trim().slice(1, -1).split("|").map(cell => inline(cell.trim()));
  const [head, , ...body] = rows;
  return make("div", {className: "sheet"}, make("table", {},
    make("tr", {}, ...cells(head).map(cell => make("th", {}, ...cell))),
    ...body.map(row => make("tr", {}, ...cells(row).map(cell => make("td", {}, ...cell))))));
}

function inline(text) {
  const made = [];
  let at = 0;
  for (const found of text.matchAll(MARKED)) {
    const {code, bold, star, line, name, url, plain} = found.groups, slanted = star ?? line;
    made.push(text.slice(at, found.index));
    at = found.index + found[0].length;
    if (code !== undefined) made.push(make("code", {textContent: code}));
    else if (bold) made.push(make("strong", {}, ...inline(bold)));
    else if (slanted) made.push(make("em", {}, ...inline(slanted)));
    else if (url) made.push(make("a", {href: url, target: "_blank", rel: "noopener noreferrer"}, ...inline(name)));
    else made.push(plain);
  }
  return [...made, text.slice(at)];
}
