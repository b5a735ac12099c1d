// A list of any length of which only the visible rows exist. Rows have one height; elements are reused.

export class List {
  // `box`: the element that scrolls. `make(element)` fills a new row, `fill(element, item)` shows an item in it, `open(item)` is Enter.
  constructor(box, { height, make, fill, open }) {
    Object.assign(this, { box, height, make, fill, open });
    this.items = [];
    this.active = -1;
    this.rows = [];
    this.space = document.createElement("div");
    this.space.className = "space";
    this.space.setAttribute("role", "rowgroup");
    box.append(this.space);
    box.addEventListener("scroll", () => this.later(), { passive: true });
    box.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) {
        this.active = row.index;
        this.open(this.items[row.index]);
      }
    });
    new ResizeObserver(() => this.later()).observe(box);
  }

  // Shows other items; the active one stays the same item where it is still there.
  show(items) {
    const active = this.items[this.active]?.id;
    this.items = items;
    if (active !== undefined) {
      this.active = items.findIndex((item) => item.id === active);
    }
    this.box.setAttribute("aria-rowcount", items.length);
    this.later();
  }

  later() {
    if (!this.drawing) {
      this.drawing = true;
      requestAnimationFrame(() => {
        this.drawing = false;
        this.draw();
      });
    }
  }

  draw() {
    const height = this.height();
    this.space.style.height = `${this.items.length * height}px`;
    const first = Math.max(0, Math.floor(this.box.scrollTop / height) - 4);
    const last = Math.min(this.items.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / height) + 4);
    while (this.rows.length < last - first) {
      const row = document.createElement("div");
      row.className = "row";
      row.setAttribute("role", "row");
      this.make(row);
      this.rows.push(row);
      this.space.append(row);
    }
    let activeRow = "";
    this.rows.forEach((row, i) => {
      const index = first + i;
      row.hidden = index >= last;
      if (row.hidden) return;
      row.index = index;
      row.id = `row-${i}`;
      row.style.transform = `translateY(${index * height}px)`;
      row.style.height = `${height}px`;
      row.setAttribute("aria-rowindex", index + 1);
      row.classList.toggle("active", index === this.active);
      row.setAttribute("aria-selected", index === this.active);
      if (index === this.active) activeRow = row.id;
      this.fill(row, this.items[index]);
    });
    if (activeRow) this.box.setAttribute("aria-activedescendant", activeRow);
    else this.box.removeAttribute("aria-activedescendant");
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / this.height()) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key === "Enter" && this.items[this.active]) {
      this.open(this.items[this.active]);
    } else if (event.key in steps) {
      this.go(this.active + steps[event.key]);
    } else {
      return;
    }
    event.preventDefault();
  }

  go(index) {
    this.active = Math.min(Math.max(index, 0), this.items.length - 1);
    const [top, height] = [this.active * this.height(), this.height()];
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    if (top + height > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + height - this.box.clientHeight;
    this.later();
  }
}
