// The first rows of a delimited file, quoted fields included. Enough to look at and to choose columns; workers read
// files with their own parser.

export interface Table {
  header: string[];
  rows: string[][];
}

export function table(text: string, most: number, whole: boolean): Table {
  const found = records(text.replace(/^\uFEFF/, ""), most + 2);
  if (!whole && found.cut) found.rows.pop(); // the last one may go on behind what was read
  const [header = [], ...rows] = found.rows;
  return { header, rows: rows.slice(0, most) };
}

function records(text: string, most: number): { rows: string[][]; cut: boolean } {
  const first = text.slice(0, text.search(/\r?\n/) >>> 0);
  const comma = [",", ";", "\t"].reduce((best, one) => (first.split(one).length > first.split(best).length ? one : best));
  const rows: string[][] = [];
  let row: string[] = [];
  let cell = "";
  let quoted = false;
  for (let at = 0; at < text.length; at++) {
    const char = text[at]!;
    if (quoted) {
      if (char !== '"') cell += char;
      else if (text[at + 1] === '"') {
        cell += char;
        at++;
      } else quoted = false;
    } else if (char === '"' && cell === "") quoted = true;
    else if (char === comma) {
      row.push(cell);
      cell = "";
    } else if (char === "\n") {
      row.push(cell.replace(/\r$/, ""));
      rows.push(row);
      row = [];
      cell = "";
      if (rows.length >= most) return { rows, cut: false };
    } else cell += char;
  }
  if (cell || row.length) rows.push([...row, cell]);
  return { rows, cut: Boolean(cell || row.length) };
}
