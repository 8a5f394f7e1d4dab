// CRC-32C (Castagnoli, RFC 3720), in pieces, as the server checks a whole upload with it.

const TABLE = new Uint32Array(256).map((_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
  return value;
});

export function crc32c(data: Uint8Array, before = 0): number {
  let crc = ~before;
  for (let at = 0; at < data.length; at++) crc = TABLE[(crc ^ data[at]!) & 255]! ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** Base64 of the four bytes, the first the highest, as the API wants it. */
export function checksum(crc: number): string {
  return btoa(String.fromCharCode(crc >>> 24, (crc >>> 16) & 255, (crc >>> 8) & 255, crc & 255));
}
