// Files dragged in or chosen, each with its progress; what broke off goes on when it is tried again.
import { useRef, useState } from "preact/hooks";
import { ApiError, send } from "./api";
import { bytes } from "./format";
import { Bar, Problem } from "./parts";
import { upload, type Step } from "./upload";

interface Sending {
  file: File;
  waits: boolean; // for those before it
  step: Step;
  error: Error | null;
  stop: AbortController;
}

export function Drop({ label, done }: { label: string; done: (name: string) => void }) {
  const [sending, setSending] = useState<Sending[]>([]);
  const [over, setOver] = useState(false);
  const field = useRef<HTMLInputElement>(null);
  const change = (file: File, next: Partial<Sending>) => setSending((all) => all.map((one) => (one.file === file ? { ...one, ...next } : one)));
  const forget = (file: File) => setSending((all) => all.filter((one) => one.file !== file));
  const fresh = (file: File, waits: boolean): Sending => ({ file, waits, step: { sent: 0, total: file.size }, error: null, stop: new AbortController() });
  // a file takes the place of one of the same name, whose upload it goes on with
  const put = (next: Sending[]) =>
    setSending((all) => {
      const [before, kept] = [true, false].map((same) => all.filter((one) => next.some((other) => other.file.name === one.file.name) === same));
      before!.forEach((one) => one.stop.abort());
      return [...kept!, ...next];
    });
  const start = async (one: Sending) => {
    const { file, stop } = one;
    if (stop.signal.aborted) return;
    change(file, { waits: false });
    try {
      await upload(file, (step) => change(file, { step }), stop.signal);
      forget(file);
      done(file.name);
    } catch (error) {
      if (stop.signal.aborted) forget(file);
      else change(file, { error: error as Error });
    }
  };
  const all = async (files: Iterable<File>) => {
    const queue = [...files].map((file) => fresh(file, true));
    put(queue);
    for (const one of queue) await start(one); // one after another: each has several parts under way
  };
  const again = (file: File) => {
    const one = fresh(file, false);
    put([one]);
    return start(one);
  };
  const replace = async (file: File) => {
    try {
      await send("DELETE", `/files/delete/${encodeURIComponent(file.name)}`);
      await again(file);
    } catch (error) {
      change(file, { error: error as Error });
    }
  };
  return (
    <div
      class={`drop ${over ? "over" : ""}`}
      onDragOver={(event) => (event.preventDefault(), setOver(true))}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        void all([...(event.dataTransfer?.files ?? [])]);
      }}
    >
      <input
        ref={field}
        type="file"
        multiple
        aria-label={label}
        onChange={() => {
          void all([...(field.current?.files ?? [])]);
          if (field.current) field.current.value = "";
        }}
      />
      <span> or drop files here</span>
      {sending.map(({ file, waits, step, error, stop }) => (
        <div key={file.name}>
          <p class="row">
            {file.name} <Bar done={step.total ? step.sent / step.total : 1} label={`Upload of ${file.name}`} />
            <small>
              {waits ? "waits for those before it" : `${bytes(step.sent)} of ${bytes(step.total)}`}
            </small>
            {error ? (
              <>
                <button type="button" class="small" onClick={() => again(file)}>
                  Go on
                </button>
                {error instanceof ApiError && error.status === 409 && (
                  <button type="button" class="small danger" onClick={() => replace(file)}>
                    Replace
                  </button>
                )}
                <button type="button" class="small" onClick={() => forget(file)}>
                  Dismiss
                </button>
              </>
            ) : (
              <button type="button" class="small" onClick={() => (stop.abort(), waits && forget(file))}>
                Stop
              </button>
            )}
          </p>
          <Problem error={error} />
        </div>
      ))}
    </div>
  );
}
