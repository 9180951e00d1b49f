/**
 * What is filled in and not sent yet, kept in this browser: values and presets in localStorage, files in IndexedDB.
 *
 * A reload keeps the chosen files, and goes on with an upload where it was. No key is ever kept here.
 *
 * @module
 */
const DATABASE = "lamplighter", STORE = "files";

function open() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
}

async function inStore(mode, use) {
  const database = await open();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode), asked = use(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(asked?.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

/** Keep a file; a browser without room or in private mode keeps none, and only a reload is lost by it. */
export const keepFile = (name, file) => inStore("readwrite", (store) => store.put(file, name)).catch(() => {});
export const keptFile = (name) => inStore("readonly", (store) => store.get(name)).catch(() => undefined);
export const keptNames = (prefix) => inStore("readonly", (store) => store.getAllKeys(IDBKeyRange.bound(prefix, `${prefix}\uffff`))).catch(() => []);
export const dropFile = (name) => inStore("readwrite", (store) => store.delete(name)).catch(() => {});

export function readJson(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function writeJson(name, value) {
  if (value === null) localStorage.removeItem(name);
  else localStorage.setItem(name, JSON.stringify(value));
}

/** Where the client keeps digests and unfinished uploads. */
export const uploadStore = {
  get: (name) => localStorage.getItem(`upload:${name}`),
  set: (name, value) => localStorage.setItem(`upload:${name}`, value),
  delete: (name) => localStorage.removeItem(`upload:${name}`),
};
