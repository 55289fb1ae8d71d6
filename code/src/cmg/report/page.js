// A click on a picture toggles between its full size and the width of its column.
for (const picture of document.querySelectorAll("figure img")) {
  picture.addEventListener("click", () => picture.parentElement.classList.toggle("whole"));
}
// A click on a column header sorts: numbers by data-value (rows without one last), text alphabetically.
for (const table of document.querySelectorAll("table.figures")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const first = head.classList.contains("n") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach(each => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      const [x, y] = [a.cells[column], b.cells[column]];
      if (!head.classList.contains("n")) return sign * x.textContent.localeCompare(y.textContent);
      const [p, q] = [x.dataset.value, y.dataset.value];
      if (!p || !q) return (p ? 0 : 1) - (q ? 0 : 1);
      return sign * (p - q);
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(compare));
  }));
}
