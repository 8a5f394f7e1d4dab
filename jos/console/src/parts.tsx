// Small pieces that several pages show. Whatever text they are given is shown as text.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError } from "./api";
import { ago, count, day } from "./format";

export function Status({ of }: { of: string }) {
  return <span class={`status ${of.toLowerCase()}`}>{of}</span>;
}

export function Bar({ done, failed = 0, label }: { done: number; failed?: number; label: string }) {
  const percent = Math.round(100 * Math.min(1, done));
  return (
    <span class="bar" role="progressbar" aria-label={label} aria-valuemin={0} aria-valuemax={100} aria-valuenow={percent}>
      <progress max={1} value={Math.min(1, done)} aria-hidden="true" class={failed > 0 ? "some-failed" : ""} />
      <span class="percent">{percent}%</span>
    </span>
  );
}

/** All that is wrong, each with its place and what to do. */
export function Problem({ error, children }: { error: Error | null; children?: ComponentChildren }) {
  if (!error) return null;
  const items = error instanceof ApiError ? error.items : [];
  return (
    <div class="problem" role="alert">
      {items.length === 0 && <p>{error.message}</p>}
      {items.map((one) => (
        <p key={one.error_uid}>
          {one.path && <code>{one.path} </code>}
          {one.message} {one.suggestion}
        </p>
      ))}
      {children}
    </div>
  );
}

export function When({ time }: { time: string | null | undefined }) {
  return time ? (
    <time dateTime={time} title={day(time)}>
      {ago(time)}
    </time>
  ) : (
    <>–</>
  );
}

export function Pager({ total, offset, limit, set, what }: { total: number; offset: number; limit: number; set: (offset: number) => void; what: string }) {
  if (total === 0) return null;
  const last = Math.max(0, Math.floor((total - 1) / limit) * limit);
  return (
    <nav class="pager" aria-label={`Pages of ${what}`}>
      <span>
        {count(offset + 1)}–{count(Math.min(total, offset + limit))} of {count(total)}
      </span>
      <button type="button" disabled={offset === 0} onClick={() => set(0)} aria-label={`First page of ${what}`}>
        «
      </button>
      <button type="button" disabled={offset === 0} onClick={() => set(Math.max(0, offset - limit))} aria-label={`Previous page of ${what}`}>
        ‹
      </button>
      <button type="button" disabled={offset >= last} onClick={() => set(offset + limit)} aria-label={`Next page of ${what}`}>
        ›
      </button>
      <button type="button" disabled={offset >= last} onClick={() => set(last)} aria-label={`Last page of ${what}`}>
        »
      </button>
    </nav>
  );
}

/** A button that asks once more before it does what cannot be taken back. */
export function Sure({ label, ask, act, danger = true, disabled = false }: { label: string; ask: string; act: () => Promise<unknown>; danger?: boolean; disabled?: boolean }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [open, setOpen] = useState(false);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    if (open) dialog.current?.showModal();
  }, [open]);
  const close = () => {
    dialog.current?.close();
    setOpen(false);
    setError(null);
  };
  const go = async () => {
    setBusy(true);
    try {
      await act();
      close();
    } catch (failed) {
      setError(failed as Error);
    } finally {
      setBusy(false);
    }
  };
  return (
    <>
      <button type="button" class={danger ? "danger" : ""} disabled={disabled} onClick={() => setOpen(true)}>
        {label}
      </button>
      {open && (
        <dialog ref={dialog} onClose={close} aria-label={label}>
          <p>{ask}</p>
          <Problem error={error} />
          <p class="row">
            <button type="button" class={danger ? "danger" : "primary"} disabled={busy} onClick={go}>
              {label}
            </button>
            <button type="button" onClick={close}>Back</button>
          </p>
        </dialog>
      )}
    </>
  );
}

export function Empty({ children }: { children: ComponentChildren }) {
  return <p class="empty">{children}</p>;
}

export function Copy({ text, label = "Copy" }: { text: string; label?: string }) {
  const [said, say] = useState("");
  const copy = async () => say((await copied(text)) ? "Copied" : "Select it and copy");
  return (
    <button type="button" class="small" onClick={copy} aria-live="polite">
      {said || label}
    </button>
  );
}

/** Whether the text is on the clipboard. A page over plain HTTP from another machine has no clipboard API; what is
 * selected can be copied there all the same. */
async function copied(text: string): Promise<boolean> {
  if (navigator.clipboard) {
    const done = await navigator.clipboard.writeText(text).then(() => true, () => false);
    if (done) return true;
  }
  const before = document.activeElement;
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "hidden";
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (before instanceof HTMLElement) before.focus();
  return done;
}
