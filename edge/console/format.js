/**
 * Numbers, times and sizes in the words of the chosen language.
 *
 * @module
 */
import { language, t } from "./text.js";

const locale = () => (language() === "zh" ? "zh-CN" : "en-GB");

export function number(value, digits = 0) {
  return new Intl.NumberFormat(locale(), { maximumFractionDigits: digits }).format(value);
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) [count, unit] = [count / 1000, unit + 1];
  return `${number(count, count < 10 && unit ? 1 : 0)} ${units[unit]}`;
}

/** Memory of a GPU, which reports MiB and is sold by the GiB. */
export function vram(mebibytes) {
  return mebibytes < 1024 ? `${number(mebibytes)} MiB` : `${number(mebibytes / 1024, mebibytes < 10_240 ? 1 : 0)} GiB`;
}

/** `90` becomes `1 min 30 s`. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 10) return t("seconds", { n: number(seconds, 1) });
  const whole = Math.round(seconds), [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  if (hours) return `${t("hours", { n: hours })} ${t("minutes", { n: minutes })}`;
  if (minutes) return whole % 60 && minutes < 10 ? `${t("minutes", { n: minutes })} ${t("seconds", { n: whole % 60 })}` : t("minutes", { n: minutes });
  return t("seconds", { n: whole });
}

/** The local time; with the day unless it is today. */
export function time(moment) {
  if (!moment) return "–";
  const date = new Date(moment), isToday = date.toDateString() === new Date().toDateString();
  const day = isToday ? {} : { month: "short", day: "numeric" };
  return new Intl.DateTimeFormat(locale(), { ...day, hour: "2-digit", minute: "2-digit", second: isToday ? "2-digit" : undefined }).format(date);
}

/** The whole local time with its zone, for a tooltip. */
export function fullTime(moment) {
  return moment ? new Intl.DateTimeFormat(locale(), { dateStyle: "medium", timeStyle: "long" }).format(new Date(moment)) : "";
}

export function secondsBetween(from, to) {
  return from ? (new Date(to ?? Date.now()) - new Date(from)) / 1000 : null;
}

export function money(amount, currency) {
  if (amount === null || amount === undefined) return "–";
  try {
    return new Intl.NumberFormat(locale(), { style: "currency", currency, maximumFractionDigits: 2 }).format(amount);
  } catch {
    return `${number(amount, 2)} ${currency ?? ""}`; // not one of the currencies of ISO 4217
  }
}

export function energy(joules) {
  if (joules === null || joules === undefined) return "–";
  return joules < 3.6e6 ? `${number(joules / 3600, 1)} Wh` : `${number(joules / 3.6e6, 2)} kWh`;
}

export function percent(fraction) {
  return `${number(Math.min(1, Math.max(0, fraction)) * 100)} %`;
}
