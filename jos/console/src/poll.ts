// A value that is asked for again and again while the page is seen. A failed try keeps the last value and says so.
import { useCallback, useEffect, useState } from "preact/hooks";

export interface Polled<T> {
  value: T | null;
  error: Error | null;
  again: () => void;
}

/** `every` in ms; 0: once. Anew when one of `deps` changes: the value of others is never given out for theirs. */
export function usePoll<T>(read: (signal: AbortSignal) => Promise<T>, every: number, deps: readonly unknown[]): Polled<T> {
  const which = JSON.stringify(deps);
  const [held, setHeld] = useState<{ of: string; value: T } | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const [turn, setTurn] = useState(0);
  const again = useCallback(() => setTurn((n) => n + 1), []);
  useEffect(() => {
    const stop = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const look = async () => {
      if (!document.hidden) {
        try {
          const found = await read(stop.signal);
          if (stop.signal.aborted) return;
          setHeld({ of: which, value: found });
          setError(null);
        } catch (failed) {
          if (stop.signal.aborted) return;
          setError(failed as Error);
        }
      }
      if (every > 0) timer = setTimeout(look, every);
    };
    const seen = () => {
      if (document.hidden || every <= 0) return;
      clearTimeout(timer);
      void look();
    };
    document.addEventListener("visibilitychange", seen);
    void look();
    return () => {
      stop.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    };
  }, [...deps, every, turn]);
  return { value: held?.of === which ? held.value : null, error, again };
}
