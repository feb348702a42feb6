"use strict";

// Without this script the page is whole: it only sorts, enlarges and copies.
const button = (words, name) => {
  const made = document.createElement("button");
  made.type = "button";
  made.className = name;
  made.textContent = words;
  return made;
};

// A cell sorts by its number, else by its words; a cell with neither comes last either way.
const orderOf = (row, column) => {
  const cell = row.cells[column];
  if (cell.dataset.number !== undefined) return Number(cell.dataset.number);
  return cell.dataset.words;
};
const compare = (a, b) => {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? (a < b ? -1 : a > b ? 1 : 0) : a.localeCompare(b, "en", { numeric: true });
};
const next = { none: "ascending", ascending: "descending", descending: "none" };

for (const table of document.querySelectorAll("table.scores")) {
  const body = table.tBodies[0];
  const given = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const label = head.querySelector(".head");
    const sorter = button(label.textContent, "head-button");
    label.replaceWith(sorter);
    sorter.addEventListener("click", () => {
      const way = next[head.getAttribute("aria-sort") ?? "none"];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      let rows = given;
      if (way !== "none") {
        head.setAttribute("aria-sort", way);
        const sign = way === "ascending" ? 1 : -1;
        const known = given.filter((row) => orderOf(row, column) !== undefined);
        known.sort((a, b) => sign * compare(orderOf(a, column), orderOf(b, column)));
        rows = [...known, ...given.filter((row) => orderOf(row, column) === undefined)];
      }
      body.append(...rows);
    });
  });
}

const dialog = document.createElement("dialog");
const close = button("Close", "tool");
const large = document.createElement("img");
dialog.append(close, large);
document.body.append(dialog);
for (const way of [close, large]) way.addEventListener("click", () => dialog.close());
for (const image of document.querySelectorAll("figure img")) {
  const opener = button("", "");
  opener.title = "Show the picture at full size";
  image.replaceWith(opener);
  opener.append(image);
  opener.addEventListener("click", () => {
    large.src = image.src;
    large.alt = image.alt;
    dialog.setAttribute("aria-label", image.closest("figure").querySelector("strong").textContent);
    dialog.showModal();
  });
}

for (const command of document.querySelectorAll(".command")) {
  const text = command.querySelector("pre");
  const copier = button("Copy", "tool");
  const say = (words) => {
    copier.textContent = words;
    setTimeout(() => { copier.textContent = "Copy"; }, 2500);
  };
  const select = () => {
    getSelection().selectAllChildren(text);
    say(document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C");
  };
  copier.setAttribute("aria-live", "polite");
  copier.addEventListener("click", () => {
    if (!navigator.clipboard) select();
    else navigator.clipboard.writeText(text.textContent).then(() => say("Copied"), select);
  });
  command.append(copier);
}

addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
