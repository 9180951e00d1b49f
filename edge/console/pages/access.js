/** Keys and the audit log, for administrators. */
import { errorText, get, owner, post, request, session } from "../api.js";
import { askDialog, fill, h } from "../dom.js";
import { copyButton, timeElement } from "../parts.js";
import { has, t } from "../text.js";

const SCOPES = ["jobs:read", "jobs:write", "assets:read", "assets:write", "hosts:read", "power", "relay", "admin"];
const CLIENT_SCOPES = SCOPES.slice(0, 5);
const ACTIONS = ["key_created", "key_rotated", "key_revoked", "host_added", "host_removed", "host_token_created", "host_token_revoked", "host_joined", "host_left", "host_power_set", "host_maintenance_started", "host_maintenance_ended", "endpoint_paused", "endpoint_resumed", "owner_deleted", "job_cancelled", "job_retried", "job_deleted", "job_action_started", "asset_deleted", "webhook_added", "webhook_deleted", "webhook_secret_rotated", "secret_set", "secret_deleted", "secret_key_rotated", "notifications_tested", "settings_changed"];

export function accessPage(main) {
  let isGone = false;
  const keys = h("section", { class: "panel" }), audit = auditPanel((error) => (problem.textContent = errorText(error))), problem = h("p", { class: "error", role: "alert" });
  fill(main, h("div", { class: "title" }, h("h1", {}, t("page_access")), h("button", { class: "primary", onclick: create }, t("new_key"))), problem, keys, audit.element);

  async function load() {
    try {
      const [{ keys: all }] = await Promise.all([request("GET", "/v1/keys"), audit.load()]);
      if (isGone) return;
      fill(keys, h("h2", {}, t("keys")), h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, [t("name"), t("owner"), t("scopes"), t("created"), t("last_use"), ""].map((text) => h("th", {}, text)))), h("tbody", {}, all.map(row)))));
    } catch (error) {
      if (!isGone) problem.textContent = errorText(error);
    }
  }

  function row(key) {
    return h("tr", {}, h("td", {}, key.name || h("span", { class: "soft mono" }, key.id), key.id === session().key_id && h("span", { class: "soft" }, ` ${t("this_key")}`)), h("td", {}, key.owner), h("td", { class: "soft" }, key.scopes.join(" ")), h("td", {}, timeElement(key.created_at)), h("td", {}, key.used_at ? timeElement(key.used_at) : t("never")),
      h("td", {}, h("div", { class: "buttons" }, h("button", { class: "quiet", onclick: () => rotate(key) }, t("rotate")), h("button", { class: "quiet danger", onclick: () => revoke(key) }, t("revoke")))));
  }

  async function attempt(act) {
    try {
      problem.textContent = "";
      await act();
      await load();
    } catch (error) {
      problem.textContent = errorText(error);
    }
  }

  const showSecret = (made) => askDialog(t("key_made", { id: made.id }), [h("pre", { class: "log mono wrap" }, made.key), copyButton(made.key), h("p", { class: "soft" }, t("shown_once"))], t("done"), t("back"));

  async function create() {
    const box = (scope) => h("label", {}, h("input", { type: "checkbox", name: `scope-${scope}`, checked: CLIENT_SCOPES.includes(scope) }), ` ${scope}`);
    const answer = await askDialog(t("new_key"), [h("label", { for: "key-owner" }, t("owner")), h("input", { id: "key-owner", name: "owner", required: true, value: owner(), pattern: "[A-Za-z0-9_\\-]{1,64}" }), h("label", { for: "key-name" }, t("name")), h("input", { id: "key-name", name: "name", maxLength: 100 }), h("fieldset", { class: "stack" }, h("legend", {}, t("scopes")), SCOPES.map(box))], t("new_key"), t("back"));
    if (!answer) return;
    const scopes = SCOPES.filter((scope) => answer[`scope-${scope}`]);
    await attempt(async () => showSecret(await post("/v1/keys", { owner: answer.owner, name: answer.name, scopes })));
  }

  async function rotate(key) {
    if (await askDialog(t("ask_rotate", { id: key.name || key.id }), [h("p", {}, t("rotate_hint"))], t("rotate"), t("back"))) await attempt(async () => showSecret(await post(`/v1/keys/${encodeURIComponent(key.id)}/rotate`, {})));
  }

  async function revoke(key) {
    if (await askDialog(t("ask_revoke", { id: key.name || key.id }), [h("p", {}, t("revoke_hint"))], t("revoke"), t("back"), true)) await attempt(() => request("DELETE", `/v1/keys/${encodeURIComponent(key.id)}`));
  }

  load();
  return () => (isGone = true);
}

/** Who changed what, by action and subject; older events on request. */
function auditPanel(fail) {
  let events = [], cursor = null;
  const action = h("select", { "aria-label": t("audit_action") }, h("option", { value: "" }, t("audit_action")), ACTIONS.map((one) => h("option", { value: one }, t(`audit_${one}`))));
  const subject = h("input", { type: "search", "aria-label": t("audit_subject"), placeholder: t("audit_subject"), maxLength: 64 });
  const list = h("div"), form = h("form", { class: "filters", role: "search" }, action, subject, h("button", {}, t("search")));
  const element = h("section", { class: "panel stack" }, h("h2", {}, t("audit")), form, list);
  form.addEventListener("submit", (event) => (event.preventDefault(), load().catch(fail)));
  action.addEventListener("change", () => load().catch(fail));

  async function load(from = null) {
    const known = from ? events : [];
    let next = from, found = [];
    do {
      const page = await get("/v1/audit", { action: action.value, subject: subject.value.trim(), cursor: next });
      [found, next] = [page.events, page.next_cursor];
    } while (!found.length && next); // a page may be empty though older events match
    [events, cursor] = [[...known, ...found], next];
    fill(list, events.length ? h("ol", { class: "timeline" }, events.map(auditRow)) : h("p", { class: "empty" }, t("none")),
      cursor && h("button", { type: "button", onclick: () => load(cursor).catch(fail) }, t("show_more")));
  }

  return { element, load: () => load() };
}

function auditRow(event) {
  const details = Object.entries(event.details ?? {}).map(([name, value]) => `${name} ${value}`);
  return h("li", {}, timeElement(event.at), " ", has(`audit_${event.action}`) ? t(`audit_${event.action}`) : event.action, " ", h("code", {}, event.subject), " ", h("span", { class: "soft" }, [event.owner, ...details, event.by, event.client].filter(Boolean).join(" · ")));
}
