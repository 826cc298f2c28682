// Rendering and keyboard navigation of the tree: the WAI-ARIA tree pattern with a checkbox in each item.
// https://www.w3.org/WAI/ARIA/apg/patterns/treeview/

import { shortCount, together } from "./items.js";

const SMALL = 60; // trees of up to this many rows start expanded

function span(className, text) {
  const made = document.createElement("span");
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export class Rows {
  /**
   * @param {HTMLElement} root the element with role "tree"
   * @param {Item[]} items the outermost items
   * @param {Set<string>} chosen real names
   * @param {(item: Item) => void} toggle choose an item, or let it go
   * @param {Record<string, string>} common real name to common name
   */
  constructor(root, items, chosen, toggle, common) {
    Object.assign(this, { root, items, chosen, toggle, common });
    this.rows = new Map(); // item to its element
    this.itemOf = new WeakMap();
    this.words = [];
    let count = 0;
    this.#walk(items, () => count++);
    this.#walk(items, (item) => { item.expanded = item.expandable && (count <= SMALL || item.level <= 2); });
    this.#fill(root, items);
    this.#setCurrent(items[0]);
    root.addEventListener("click", (event) => this.#clicked(event));
    root.addEventListener("focusin", (event) => this.#setCurrent(this.itemOf.get(event.target.closest("[role=treeitem]"))));
    root.addEventListener("keydown", (event) => this.#pressed(event));
  }

  /** Update the checkbox of each item. */
  refresh() {
    for (const [item, row] of this.rows) {
      if (item.node.delta) continue;
      row.setAttribute("aria-checked", item.checked(this.chosen));
    }
  }

  /** Expand or collapse all items. */
  expandAll(on) {
    this.#walk(this.items, (item) => this.#expand(item, on && item.expandable));
    if (!this.#visible().includes(this.current)) this.#setCurrent(this.items[0]);
  }

  /** Show only matches of a search and their parents; return the matching names. Without words, show everything. */
  filter(words, common) {
    this.words = words;
    const found = [];
    const look = (item) => {
      const own = item.unfolded ? [] : item.found(words, common); // its members are searched one by one
      const below = item.children.map(look).some(Boolean);
      found.push(...own);
      if (below && words.length > 0) this.#expand(item, true);
      const shown = words.length === 0 || own.length > 0 || below;
      item.hidden = !shown;
      item.hit = own.length > 0;
      this.#settle(item);
      return shown;
    };
    this.items.forEach(look);
    const visible = this.#visible();
    if (!visible.includes(this.current) && visible.length > 0) this.#setCurrent(visible[0]);
    return [...new Set(found)];
  }

  /** Move the focus into the tree, to the first match. */
  focusFirst() {
    const visible = this.#visible();
    const first = visible.find((item) => item.hit) ?? visible[0];
    if (first) this.#focus(first);
  }

  // ----- rendering -----

  #fill(list, items) {
    list.replaceChildren(...items.map((item, at) => this.#row(item, at + 1, items.length)));
  }

  #row(item, at, of) {
    const row = document.createElement("li");
    row.setAttribute("role", "treeitem");
    row.setAttribute("aria-level", item.level);
    row.setAttribute("aria-posinset", at);
    row.setAttribute("aria-setsize", of);
    row.setAttribute("aria-label", this.#spoken(item));
    row.tabIndex = -1;
    if (item.node.delta) row.setAttribute("aria-disabled", "true");
    else row.setAttribute("aria-checked", item.checked(this.chosen));
    row.append(this.#face(item));
    this.rows.set(item, row);
    this.itemOf.set(row, item);
    this.#settle(item);
    return row;
  }

  #face(item) {
    const face = span("row");
    const mark = span("mark");
    mark.ariaHidden = "true";
    if (item.node.delta) mark.classList.add("none");
    const turn = span("turn");
    turn.ariaHidden = "true";
    const words = span("words");
    words.append(span(`name${item.several ? " repeated" : ""}${item.node.delta ? " delta" : ""}`, together(item.names)));
    if (item.several && !item.node.delta) words.append(this.#unfolder(item));
    words.append(span("kind", item.kinds.join(", ")));
    for (const name of this.#commons(item)) words.append(span("common", name));
    for (const { name, shape, role } of item.node.parameters) words.append(span(role, `${name} ${shape.join(" × ")}`));
    if (item.node.children.length > 0) {
      words.append(span("count", `${item.several ? `${item.members.length} × ` : ""}${shortCount(item.node.size)}`));
    }
    face.append(turn, mark, words);
    return face;
  }

  #unfolder(item) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "unfold";
    button.tabIndex = -1; // by keyboard: U
    button.textContent = item.unfolded ? "Fold" : "Unfold";
    return button;
  }

  #commons(item) {
    return [...new Set(item.scope.map(({ name }) => this.common[name]).filter(Boolean))];
  }

  #spoken(item) {
    const count = item.scope.length > 1 ? `, ${item.scope.length} modules` : "";
    const common = this.#commons(item);
    return `${together(item.names)}, ${item.kinds.join(", ")}${common.length ? `, ${common.join(", ")}` : ""}${count}`;
  }

  #settle(item) {
    const row = this.rows.get(item);
    if (!row) return;
    row.hidden = item.hidden === true;
    row.classList.toggle("hit", item.hit === true);
    row.querySelector(":scope > .row > .turn").classList.toggle("none", !item.expandable);
    if (!item.expandable) {
      row.removeAttribute("aria-expanded");
      return;
    }
    row.setAttribute("aria-expanded", String(item.expanded));
    let group = row.querySelector(":scope > ul");
    if (item.expanded && group === null) {
      group = document.createElement("ul");
      group.setAttribute("role", "group");
      row.append(group);
      this.#fill(group, item.children);
    }
    if (group) group.hidden = !item.expanded;
  }

  #expand(item, on) {
    item.expanded = on;
    this.#settle(item);
  }

  #unfold(item) {
    const row = this.rows.get(item);
    this.#walk(item.children, (inner) => this.rows.delete(inner));
    row.querySelector(":scope > ul")?.remove();
    item.unfold(!item.unfolded);
    row.querySelector(":scope > .row .unfold").textContent = item.unfolded ? "Fold" : "Unfold";
    this.#expand(item, item.expandable);
    if (this.words.length > 0) this.filter(this.words, this.common);
    this.#focus(item);
  }

  // ----- navigation -----

  #clicked(event) {
    const row = event.target.closest("[role=treeitem]");
    if (!row || !event.target.closest(".row")) return;
    const item = this.itemOf.get(row);
    this.#focus(item);
    if (event.target.closest(".unfold")) this.#unfold(item);
    else if (event.target.closest(".turn") && item.expandable) this.#expand(item, !item.expanded);
    else if (!item.node.delta) this.toggle(item);
  }

  #pressed(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const item = this.current;
    const visible = this.#visible();
    const at = visible.indexOf(item);
    const steps = {
      ArrowDown: () => this.#focus(visible[at + 1]),
      ArrowUp: () => this.#focus(visible[at - 1]),
      Home: () => this.#focus(visible[0]),
      End: () => this.#focus(visible.at(-1)),
      ArrowRight: () => {
        if (!item.expandable) return;
        if (item.expanded) this.#focus(visible[at + 1]?.parent === item ? visible[at + 1] : undefined);
        else this.#expand(item, true);
      },
      ArrowLeft: () => {
        if (item.expandable && item.expanded) this.#expand(item, false);
        else this.#focus(item.parent ?? undefined);
      },
      Enter: () => item.node.delta || this.toggle(item),
      " ": () => item.node.delta || this.toggle(item),
      "*": () => (item.parent?.children ?? this.items).forEach((other) => other.expandable && this.#expand(other, true)),
      u: () => item.several && !item.node.delta && this.#unfold(item),
      U: () => steps.u(),
    };
    if (!Object.hasOwn(steps, event.key)) return;
    event.preventDefault();
    steps[event.key]();
  }

  #focus(item) {
    if (!item) return;
    this.#setCurrent(item);
    this.rows.get(item).focus();
  }

  #setCurrent(item) {
    if (this.current) this.rows.get(this.current)?.setAttribute("tabindex", "-1");
    this.current = item;
    if (item) this.rows.get(item).tabIndex = 0;
  }

  #visible() {
    const seen = [];
    const look = (item) => {
      if (item.hidden) return;
      seen.push(item);
      if (item.expanded) item.children.forEach(look);
    };
    this.items.forEach(look);
    return seen;
  }

  #walk(items, visit) {
    for (const item of items) {
      visit(item);
      this.#walk(item.children, visit);
    }
  }
}
