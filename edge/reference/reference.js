// Renders /openapi.json. All texts go in as text, never as markup.
import { about, chooseLanguage, language, operationText, t, tagText } from "/docs/texts.js";

const METHODS = ["get", "head", "put", "post", "patch", "delete"];

/** Make an element. Children that are strings become text. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Make text with `code` between backticks. */
function prose(text = "") {
  return text.split("`").map((part, index) => (index % 2 ? make("code", {}, part) : part));
}

function typeOf(schema = {}) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return [make("a", { href: `#schema-${name}` }, name)];
  }
  const choices = schema.oneOf ?? schema.anyOf;
  if (choices) return choices.flatMap((choice, index) => [...(index ? [t("or")] : []), ...typeOf(choice)]);
  if (schema.type === "array") return [t("list_of"), ...typeOf(schema.items)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(", ")];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  return [[schema.type ?? t("any"), schema.format].filter(Boolean).join(" ")];
}

function table(heads, rows) {
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}

function fieldsOf(schema) {
  const required = new Set(schema.required);
  return table([t("about_key"), t("type"), t("meaning")], Object.entries(schema.properties).map(([name, field]) => make(
    "tr", {},
    make("td", {}, make("code", {}, name), required.has(name) ? "" : make("span", { class: "soft" }, ` ${t("optional")}`)),
    make("td", {}, ...typeOf(field)),
    make("td", {}, ...prose(field.description)),
  )));
}

function example(value) {
  return make("pre", {}, typeof value === "string" ? value : JSON.stringify(value, null, 2));
}

function bodyOf(title, content = {}) {
  return Object.entries(content).flatMap(([mediaType, { schema, example: shown }]) => [
    make("h4", {}, `${title}: `, ...typeOf(schema), ` (${mediaType})`),
    ...(shown === undefined ? [] : [example(shown)]),
  ]);
}

function operation(path, method, described) {
  const parameters = (described.parameters ?? []).map((parameter) => make(
    "tr", {},
    make("td", {}, make("code", {}, parameter.name), make("span", { class: "soft" }, ` ${parameter.in}`)),
    make("td", {}, ...typeOf(parameter.schema)),
    make("td", {}, ...prose(parameter.description)),
  ));
  const answers = Object.entries(described.responses);
  const good = answers.filter(([status]) => status < "4"), refusals = answers.filter(([status]) => status >= "4");
  const element = make(
    "details", { id: described.operationId },
    make("summary", {}, make("b", {}, method.toUpperCase()), make("code", {}, path), ` ${operationText(described.operationId, described.summary)}`),
    make("p", {}, ...prose(described.description), " ", make("a", { href: `#${described.operationId}`, class: "soft" }, described.operationId)),
    ...(parameters.length ? [make("h4", {}, t("parameters")), table([t("name"), t("type"), t("meaning")], parameters)] : []),
    ...bodyOf(t("body"), described.requestBody?.content),
    ...good.flatMap(([status, answer]) => [make("h4", {}, `${status} `, ...prose(answer.description)), ...bodyOf(t("answer"), answer.content)]),
    make("h4", {}, t("refusals")),
    table([t("status"), t("codes")], refusals.map(([status, answer]) => make("tr", {}, make("td", {}, status), make("td", {}, ...prose(answer.description))))),
  );
  element.dataset.words = `${method} ${path} ${described.operationId} ${described.summary} ${operationText(described.operationId, "")}`.toLowerCase();
  return element;
}

function render(documented) {
  document.documentElement.lang = language() === "zh" ? "zh-CN" : "en";
  document.querySelector("#about").textContent = [about(documented.info.description), t("english"), `${t("version")} ${documented.info.version}`].filter(Boolean).join(" ");
  document.querySelector("#search-label").textContent = t("search");
  const main = document.querySelector("#operations"), sections = document.querySelector("#sections");
  sections.setAttribute("aria-label", t("sections"));
  main.replaceChildren();
  sections.replaceChildren();
  for (const { name, description } of documented.tags) {
    const operations = Object.entries(documented.paths).flatMap(([path, item]) => METHODS
      .filter((method) => item[method]?.tags.includes(name))
      .map((method) => operation(path, method, item[method])));
    sections.append(make("a", { href: `#tag-${name}` }, name));
    main.append(make("section", {}, make("h2", { id: `tag-${name}` }, name), make("p", {}, tagText(name, description)), ...operations));
  }
  const schemas = Object.entries(documented.components.schemas).map(([name, schema]) => {
    const element = make(
      "details", { id: `schema-${name}` },
      make("summary", {}, make("code", {}, name)),
      make("p", {}, ...prose(schema.description)),
      schema.properties ? fieldsOf(schema) : make("p", {}, ...typeOf(schema)),
    );
    element.dataset.words = name.toLowerCase();
    return element;
  });
  sections.append(make("a", { href: "#schemas" }, t("types")));
  main.append(make("section", {}, make("h2", { id: "schemas" }, t("types")), ...schemas));
}

/** Open what the address names. */
function openNamed() {
  const named = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (named instanceof HTMLDetailsElement) named.open = true;
  named?.scrollIntoView();
}

document.querySelector("#search").addEventListener("input", ({ target }) => {
  const words = target.value.toLowerCase().split(/\s+/);
  for (const element of document.querySelectorAll("details")) {
    element.hidden = !words.every((word) => element.dataset.words.includes(word));
  }
});
addEventListener("hashchange", openNamed);

const switcher = document.querySelector("#language");

function nameSwitcher() {
  switcher.textContent = language() === "zh" ? "English" : "中文";
  switcher.lang = language() === "zh" ? "en" : "zh-CN";
}

nameSwitcher();
const answer = await fetch("/openapi.json");
if (answer.ok) {
  const documented = await answer.json();
  render(documented);
  openNamed();
  switcher.addEventListener("click", () => {
    chooseLanguage(language() === "zh" ? "en" : "zh");
    nameSwitcher();
    document.querySelector("#search").value = ""; // its words were of the other language
    render(documented);
    openNamed();
  });
} else {
  document.querySelector("#operations").textContent = t("unavailable", { status: answer.status });
}
