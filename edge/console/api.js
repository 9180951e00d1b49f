/**
 * The edge as this page sees it: the client, who is signed in, and for which owner.
 *
 * @module
 */
import { Client } from "./client/index.js";
import { language } from "./text.js";

const state = { client: null, session: null, owner: null };

/** Make the client anew, after the language has changed. */
export function connect() {
  state.client = new Client({ language: language(), headers: { "X-Lamplighter-Console": "1" } });
}

export const client = () => state.client;
export const session = () => state.session;

/** The owner whose jobs are shown: the key's own, or another that an admin has chosen. */
export const owner = () => state.owner ?? state.session?.owner;
export const chooseOwner = (name) => (state.owner = name && name !== state.session?.owner ? name : null);
export const can = (scope) => Boolean(state.session?.scopes.includes(scope));

/** Send a request for the chosen owner; a value of `query` may be a list. */
export function request(method, path, { query = {}, ...options } = {}) {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries({ ...query, owner: state.owner })) {
    for (const one of Array.isArray(value) ? value : [value]) if (one !== null && one !== undefined && one !== "") params.append(name, one);
  }
  return state.client.request(method, params.size ? `${path}?${params}` : path, options);
}

export const get = (path, query, options) => request("GET", path, { query, ...options });
export const post = (path, json, options) => request("POST", path, { json, ...options });

/** Return the session, null when nobody is signed in. Throws Unreachable. */
export async function loadSession() {
  state.session = (await state.client.request("GET", "/v1/session")) ?? null;
  return state.session;
}

export async function signIn(body) {
  state.session = await state.client.request("POST", "/v1/session", { json: body });
  state.owner = null;
  return state.session;
}

export async function signOut() {
  await state.client.request("DELETE", "/v1/session");
  state.session = null;
}

/** Return an error's text for people: the edge's own words where there are some. */
export function errorText(error) {
  const fields = error.errors?.map(({ path, message }) => `${path}: ${message}`) ?? [];
  const detail = error.detail ?? error.message;
  return [detail, ...fields.filter((field) => field !== detail)].join("\n");
}
