// Items of the tree, without their rendering: the modules of an item, its children, and search.

/** A module, or a group of equal modules as folded by the server. */
export class Item {
  /**
   * @param {object} node as sent by the server: names, kinds, parameters, size, delta, children
   * @param {number[]} members indices of the node's names that this item represents
   * @param {string[]} outer real names of the modules that contain it; [""] for the backbone itself
   * @param {Item|null} parent the item above it
   */
  constructor(node, members, outer, parent) {
    this.node = node;
    this.parent = parent;
    this.members = members;
    this.level = parent ? parent.level + 1 : 1;
    this.outer = outer;
    this.scope = outer.flatMap((name) =>
      members.map((at) => ({ name: name ? `${name}.${node.names[at]}` : node.names[at], kind: node.kinds[at] })),
    );
    this.names = members.map((at) => node.names[at]);
    this.kinds = [...new Set(members.map((at) => node.kinds[at]))];
    this.expanded = false;
    this.unfolded = false; // whether the modules of a group are shown one by one
    this.inner = null;
  }

  get several() {
    return this.members.length > 1;
  }

  get expandable() {
    return this.unfolded || this.node.children.length > 0;
  }

  /** The items below: the members if the group is unfolded, else the children of each member. */
  get children() {
    if (this.inner === null) {
      const inside = this.scope.map(({ name }) => name);
      this.inner = this.unfolded
        ? this.members.map((at) => new Item(this.node, [at], this.outer, this))
        : this.node.children.map((child) => new Item(child, [...child.names.keys()], inside, this));
    }
    return this.inner;
  }

  /** Unfold a group into its members, or fold it again. */
  unfold(on) {
    this.unfolded = on;
    this.inner = null;
  }

  /** Whether its modules are chosen, as a value of aria-checked: "true", "false" or "mixed". */
  checked(chosen) {
    const count = this.scope.reduce((sum, { name }) => sum + chosen.has(name), 0);
    return count === 0 ? "false" : count === this.scope.length ? "true" : "mixed";
  }

  /** Its modules that match a search. */
  found(words, common) {
    if (words.length === 0 || this.node.delta) return [];
    return this.scope.filter((module) => matches(module, words, common)).map(({ name }) => name);
  }
}

/** Whether every word is in a module's path, type or common name, and one of them in its own name, type or common name. */
function matches({ name, kind }, words, common) {
  const path = name.toLowerCase();
  const own = [path.slice(path.lastIndexOf(".") + 1), kind.toLowerCase(), (common[name] ?? "").toLowerCase()];
  const reaches = (word) => own.some((text) => text.includes(word)) || endsInside(path, word);
  return words.some(reaches) && words.every((word) => path.includes(word) || reaches(word));
}

/** Whether a word with dots, such as "self.query", ends in the last part of a path. */
function endsInside(path, word) {
  const at = path.lastIndexOf(word);
  return at >= 0 && at + word.length > path.lastIndexOf(".") + 1;
}

/** Short form of the names of equal modules: "0-3,5" for block numbers, else the names separated by commas. */
export function together(names) {
  if (!names.every((name) => /^\d+$/.test(name))) return names.join(", ");
  const spans = [];
  for (const number of names.map(Number)) {
    const last = spans.at(-1);
    if (last && last[1] + 1 === number) last[1] = number;
    else spans.push([number, number]);
  }
  return spans.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`)).join(", ");
}

/** A count with three digits: "768", "591K", "85.1M". */
export function shortCount(number) {
  for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "K"]]) {
    if (number >= size * 0.9995) return `${Number((number / size).toPrecision(3))}${unit}`;
  }
  return String(number);
}
