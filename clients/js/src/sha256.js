/**
 * SHA-256 (FIPS 180-4) of a stream: WebCrypto can only hash what is in memory at once.
 *
 * @module
 */

const BLOCK_BYTES = 64;

/**
 * The first 32 bits of the fraction of the `power`-th root of the first `count` primes.
 *
 * @param {number} count
 * @param {number} power
 */
function rootsOfPrimes(count, power) {
  const words = [];
  for (let n = 2; words.length < count; n++) {
    let isPrime = true;
    for (let d = 2; d * d <= n; d++) if (n % d === 0) isPrime = false;
    if (isPrime) words.push(fractionOfRoot(BigInt(n), power));
  }
  return words;
}

/**
 * @param {bigint} n
 * @param {number} power
 */
function fractionOfRoot(n, power) {
  const wanted = n << BigInt(32 * power); // the root of this is the root of n, times 2^32
  let low = 0n, high = n << 32n;
  while (low < high) {
    const middle = (low + high + 1n) >> 1n;
    if (middle ** BigInt(power) <= wanted) low = middle;
    else high = middle - 1n;
  }
  return Number(low & 0xffffffffn) | 0;
}

const K = Int32Array.from(rootsOfPrimes(64, 3));
const INITIAL = Int32Array.from(rootsOfPrimes(8, 2));

/** A hash that takes its data in pieces. */
export class Sha256 {
  constructor() {
    this._state = INITIAL.slice();
    this._words = new Int32Array(64);
    this._rest = new Uint8Array(BLOCK_BYTES);
    this._length = 0;
  }

  /**
   * @param {Uint8Array} data
   * @returns {this}
   */
  update(data) {
    let at = 0;
    const held = this._length % BLOCK_BYTES;
    this._length += data.length;
    if (held) {
      at = Math.min(BLOCK_BYTES - held, data.length);
      this._rest.set(data.subarray(0, at), held);
      if (held + at < BLOCK_BYTES) return this;
      this._compress(this._rest, 0);
    }
    for (; at + BLOCK_BYTES <= data.length; at += BLOCK_BYTES) this._compress(data, at);
    this._rest.set(data.subarray(at));
    return this;
  }

  /** Return the digest as 64 hex digits. Nothing can be added after it. */
  hex() {
    const bits = this._length * 8;
    const padding = new Uint8Array(((this._length + 8) & ~63) + BLOCK_BYTES - this._length);
    padding[0] = 0x80;
    const end = new DataView(padding.buffer);
    end.setUint32(padding.length - 8, Math.floor(bits / 2 ** 32));
    end.setUint32(padding.length - 4, bits >>> 0);
    this.update(padding);
    return Array.from(this._state, (word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
  }

  /**
   * @param {Uint8Array} data
   * @param {number} at
   */
  _compress(data, at) {
    const w = this._words, h = this._state;
    for (let t = 0; t < 16; t++, at += 4) {
      w[t] = (data[at] << 24) | (data[at + 1] << 16) | (data[at + 2] << 8) | data[at + 3];
    }
    for (let t = 16; t < 64; t++) {
      const x = w[t - 15], y = w[t - 2];
      const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      w[t] = (w[t - 16] + s0 + w[t - 7] + s1) | 0;
    }
    let a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], i = h[7];
    for (let t = 0; t < 64; t++) {
      const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const t1 = (i + s1 + (g ^ (e & (f ^ g))) + K[t] + w[t]) | 0;
      const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const t2 = (s0 + ((a & b) | (c & (a | b)))) | 0;
      i = g; g = f; f = e; e = (d + t1) | 0;
      d = c; c = b; b = a; a = (t1 + t2) | 0;
    }
    // Written out, because this runs for every 64 bytes of a file.
    h[0] += a; h[1] += b; h[2] += c; h[3] += d; h[4] += e; h[5] += f; h[6] += g; h[7] += i;
  }
}
