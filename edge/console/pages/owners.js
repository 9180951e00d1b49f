/** The owners, what each has, and the deletion of one with all that it has. */
import { chooseOwner, errorText, request, session } from "../api.js";
import { askDialog, fill, h } from "../dom.js";
import { bytes, number } from "../format.js";
import { restart } from "../live.js";
import { timeElement } from "../parts.js";
import { t } from "../text.js";

const REFRESH_MS = 2000;
const LOST = ["jobs", "unfinished", "assets", "keys", "deliveries"];
const ERASED = ["jobs", "cancelled", "assets", "keys", "deliveries"];

export function ownersPage(main) {
  let isGone = false, timer = 0;
  const list = h("section", { class: "panel" }), problem = h("p", { class: "error", role: "alert" });
  fill(main, h("div", { class: "title" }, h("h1", {}, t("page_owners"))), problem, list);

  async function load() {
    clearTimeout(timer);
    try {
      const { owners } = await request("GET", "/v1/owners");
      if (isGone) return;
      const heads = [t("owner"), t("jobs"), t("files"), t("keys"), t("deletion"), ""];
      fill(list, h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, heads.map((text, index) => h("th", { scope: "col", class: index > 0 && index < 4 ? "num" : "" }, text)))), h("tbody", {}, owners.map(row)))));
      if (owners.some((one) => isRunning(one.deletion))) timer = setTimeout(load, REFRESH_MS);
    } catch (error) {
      if (!isGone) problem.textContent = errorText(error);
    }
  }

  function row({ owner, jobs, unfinished, assets, keys, deletion }) {
    return h("tr", {}, h("td", {}, owner, owner === session().owner && h("span", { class: "soft" }, ` ${t("your_owner")}`)), h("td", { class: "num" }, number(jobs), unfinished > 0 && h("span", { class: "soft" }, ` ${t("unfinished_jobs", { n: number(unfinished) })}`)),
      h("td", { class: "num" }, number(assets)), h("td", { class: "num" }, number(keys)), h("td", {}, deletionText(deletion)),
      h("td", {}, h("div", { class: "buttons" }, h("button", { class: "quiet", "aria-label": t("show_jobs_of", { owner }), onclick: () => showJobs(owner) }, t("page_jobs")),
        owner !== session().owner && h("button", { class: "quiet danger", disabled: isRunning(deletion), "aria-label": t("delete_owner", { owner }), onclick: () => remove(owner) }, t("do_delete")))));
  }

  function showJobs(owner) {
    chooseOwner(owner);
    restart();
    location.hash = "#/jobs";
  }

  /** Ask, with all that is lost, and for the name: a click must not be enough. */
  async function remove(owner) {
    problem.textContent = "";
    try {
      const held = await request("GET", `/v1/owners/${encodeURIComponent(owner)}`);
      const name = h("input", { id: "owner-name", name: "name", required: true, pattern: owner, autocomplete: "off", title: owner });
      const answer = await askDialog(t("ask_delete_owner", { owner }), [h("p", {}, t("lost_forever")), h("ul", { class: "lost" }, LOST.map((kind) => h("li", {}, lostText(kind, held[kind], held.bytes))), h("li", {}, t("lost_usage"))), h("label", { for: "owner-name" }, t("type_owner", { owner })), name], t("do_delete"), t("back"), true);
      if (answer) await request("DELETE", `/v1/owners/${encodeURIComponent(owner)}`);
      await load();
    } catch (error) {
      problem.textContent = errorText(error);
    }
  }

  load();
  return () => {
    isGone = true;
    clearTimeout(timer);
  };
}

const isRunning = (deletion) => Boolean(deletion) && deletion.state !== "done";

function lostText(kind, count, size) {
  return t(`lost_${kind}`, { n: number(count), size: bytes(size) });
}

function deletionText(deletion) {
  if (!deletion) return "";
  const counts = ERASED.map((kind) => lostText(kind, deletion.erased[kind], deletion.erased.bytes)).join(", ");
  return [h("span", {}, t(`deletion_${deletion.state}`), " ", timeElement(deletion.finished_at ?? deletion.asked_at)), h("div", { class: "soft" }, counts),
    deletion.waiting_for > 0 && h("div", { class: "soft" }, t("deletion_waits", { n: deletion.waiting_for })), deletion.hosts_pending.length > 0 && h("div", { class: "soft" }, t("deletion_hosts", { hosts: deletion.hosts_pending.join(", ") }))];
}
