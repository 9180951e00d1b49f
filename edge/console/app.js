/**
 * The console: who is signed in, which page is shown, and the frame around it.
 *
 * The address after `#/` names the page and its filters, so that every view can be linked and reloaded.
 *
 * @module
 */
import { can, chooseOwner, connect, loadSession, owner, session, signIn, signOut } from "./api.js";
import { fill, h } from "./dom.js";
import { time } from "./format.js";
import { connection, listen, restart, stop } from "./live.js";
import { accessPage } from "./pages/access.js";
import { deliveriesPage } from "./pages/deliveries.js";
import { endpointsPage } from "./pages/endpoints.js";
import { hostsPage } from "./pages/hosts.js";
import { jobPage } from "./pages/job.js";
import { jobsPage } from "./pages/jobs.js";
import { newJobPage } from "./pages/new-job.js";
import { ownersPage } from "./pages/owners.js";
import { signInPage } from "./pages/sign-in.js";
import { usagePage } from "./pages/usage.js";
import { chooseLanguage, language, t } from "./text.js";
import { noteState, resumeUploads, stopUploads } from "./uploads.js";

/** Pages by the first part of the address. `scope`: what the key needs; a page that it may not see is not offered. */
const PAGES = [
  { name: "new", scope: "jobs:write", render: newJobPage },
  { name: "jobs", scope: "jobs:read", render: (main, path, query) => (path[0] ? jobPage(main, path[0]) : jobsPage(main, query)) },
  { name: "hosts", scope: "hosts:read", render: hostsPage },
  { name: "endpoints", scope: "jobs:read", render: endpointsPage },
  { name: "usage", scope: "jobs:read", render: usagePage },
  { name: "deliveries", scope: "jobs:read", render: deliveriesPage },
  { name: "owners", scope: "admin", render: ownersPage },
  { name: "access", scope: "admin", render: accessPage },
];

const main = h("main", { id: "main", tabIndex: -1 });
const banner = h("div", { class: "banner", role: "status", hidden: true });
const header = h("header");
let leave = () => {};

function readAddress() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/").map(decodeURIComponent);
  return { name, rest, query: new URLSearchParams(query) };
}

function drawHeader(current) {
  const pages = PAGES.filter((page) => can(page.scope));
  fill(header,
    h("a", { class: "skip", href: "#main", onclick: (event) => (event.preventDefault(), main.focus()) }, t("skip")),
    h("a", { class: "brand", href: "#/" }, h("span", { class: "lamp", "aria-hidden": "true" }), "Lamplighter"),
    session() && h("nav", { "aria-label": t("pages") },
      pages.map((page) => h("a", { href: `#/${page.name}`, "aria-current": page.name === current ? "page" : undefined }, t(`page_${page.name}`)))),
    h("div", { class: "right" },
      session() && can("admin") && ownerChoice(),
      h("button", { class: "quiet", lang: language() === "zh" ? "en" : "zh", onclick: changeLanguage }, language() === "zh" ? "English" : "中文"),
      session() && h("button", { class: "quiet", title: session().name || session().key_id, onclick: leaveConsole }, t("sign_out"))));
}

function ownerChoice() {
  const input = h("input", { class: "owner", value: owner(), "aria-label": t("owner"), title: t("owner_hint"), size: 10, maxLength: 64, pattern: "[A-Za-z0-9_\\-]+" });
  input.addEventListener("change", () => {
    if (!input.reportValidity()) return;
    chooseOwner(input.value.trim());
    restart();
    show();
  });
  return input;
}

function changeLanguage() {
  chooseLanguage(language() === "zh" ? "en" : "zh");
  connect();
  restart();
  show();
}

async function leaveConsole() {
  stopUploads();
  await signOut().catch(() => {});
  stop();
  location.hash = "#/";
  show();
}

/** Draw the page that the address names. */
function show() {
  leave();
  leave = () => {};
  document.documentElement.lang = language() === "zh" ? "zh-CN" : "en";
  const address = readAddress();
  if (!session()) {
    drawHeader(null);
    document.title = "Lamplighter";
    leave = signInPage(main, enter) ?? (() => {});
    return;
  }
  const allowed = PAGES.filter((page) => can(page.scope));
  const page = allowed.find((one) => one.name === address.name) ?? allowed.find((one) => one.name === "jobs") ?? allowed[0];
  drawHeader(page?.name);
  document.title = page ? `${t(`page_${page.name}`)} · Lamplighter` : "Lamplighter";
  if (!page) fill(main, h("section", { class: "panel" }, h("p", {}, t("nothing_allowed"))));
  else leave = page.render(main, address.rest, address.query) ?? (() => {});
}

function enter() {
  if (session()?.language && !localStorage.getItem("language")) {
    chooseLanguage(session().language, false);
    connect();
  }
  restart();
  resumeUploads();
  if (!location.hash || location.hash === "#") location.hash = can("jobs:write") ? "#/new" : "#/jobs";
  show();
}

function drawBanner() {
  banner.hidden = !connection.isLost;
  fill(banner, connection.isLost ? t("edge_lost", { time: time(connection.lastNews) }) : "");
}

async function begin() {
  connect();
  document.body.append(header, banner, main);
  const ticket = /^#ticket=([\w.-]+)$/.exec(location.hash)?.[1];
  if (ticket) history.replaceState(null, "", location.pathname); // a reload must not show an old ticket
  for (;;) {
    try {
      await loadSession();
      break;
    } catch {
      connection.isLost = true;
      drawBanner();
      await new Promise((resolve) => setTimeout(resolve, 3000));
    }
  }
  connection.isLost = false;
  drawBanner();
  let problem = null;
  if (ticket) await signIn({ ticket }).catch((error) => (problem = error));
  if (session() && !problem) enter();
  else {
    show();
    if (problem) signInPage(main, enter, problem);
  }
  addEventListener("hashchange", show);
  listen((event) => {
    if (event.kind === "connection") drawBanner();
    if (event.kind === "state") noteState(event.data);
    if (event.kind === "signed_out") loadSession().then(show, () => {});
  });
}

begin();
