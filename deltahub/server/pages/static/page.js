// Scripts of the pages: copy buttons, the colour theme, and search while typing.
"use strict";

for (const block of document.querySelectorAll("[data-copy]")) {
  const text = block.querySelector("pre");
  const button = document.createElement("button");
  const rest = "Copy";
  button.type = "button";
  button.textContent = rest;
  button.setAttribute("aria-label", `Copy: ${text.getAttribute("aria-label")}`);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch { // browsers allow copying on secure pages only
      getSelection().selectAllChildren(text);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = rest; }, 2000);
  });
  block.append(button);
  block.classList.add("ready");
}

for (const form of document.querySelectorAll("form.theme")) {
  form.addEventListener("submit", (event) => {
    const theme = event.submitter?.value ?? "";
    event.preventDefault();
    const secure = location.protocol === "https:" ? "; secure" : "";
    document.cookie = `deltahub_theme=${theme}; path=/; samesite=strict; max-age=${theme ? 31536000 : 0}${secure}`;
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    for (const button of form.elements) button.setAttribute?.("aria-pressed", String(button.value === theme));
  });
}

function fold() { // on a phone the open filters would hide the results
  if (!matchMedia("(max-width: 56rem)").matches) return;
  for (const facet of document.querySelectorAll(".facets details")) facet.open = facet.contains(document.activeElement);
}
fold();
document.addEventListener("htmx:afterSwap", fold);

document.addEventListener("htmx:configRequest", ({ detail }) => { // the URL contains only the parameters in use
  for (const [name, value] of [...detail.formData.entries()]) {
    if (!value || (name === "sort" && value === "time")) detail.formData.delete(name, value);
  }
});
document.addEventListener("htmx:afterSettle", () => {
  const [said, count] = ["said", "count"].map((id) => document.getElementById(id));
  if (said) said.textContent = count ? count.textContent : "";
});
for (const failure of ["htmx:responseError", "htmx:sendError"]) { // the full page shows the error
  document.addEventListener(failure, ({ detail }) => location.assign(detail.pathInfo.finalRequestPath ?? location.href));
}
