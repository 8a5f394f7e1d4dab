// Files dragged in or chosen, each with its progress; what broke off goes on when it is tried again.
import { useRef, useState } from "preact/hooks";
import { ApiError, send } from "./api";
import { bytes } from "./format";
import { Bar, Problem } from "./parts";
import { upload, type Step } from "./upload";

interface Sending {
  file: File;
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
  const start = async (file: File) => {
    const stop = new AbortController();
    const fresh = { file, step: { sent: 0, total: file.size }, error: null, stop };
    setSending((all) => [...all.filter((one) => one.file !== file), fresh]);
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
    for (const file of files) await start(file); // one after another: each has several parts under way
  };
  const replace = async (file: File) => {
    try {
      await send("DELETE", `/files/delete/${encodeURIComponent(file.name)}`);
      await start(file);
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
      {sending.map(({ file, step, error, stop }) => (
        <div key={file.name}>
          <p class="row">
            {file.name} <Bar done={step.total ? step.sent / step.total : 1} label={`Upload of ${file.name}`} />
            <small>
              {bytes(step.sent)} of {bytes(step.total)}
            </small>
            {error ? (
              <>
                <button type="button" class="small" onClick={() => start(file)}>
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
              <button type="button" class="small" onClick={() => stop.abort()}>
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
