// The frame around all pages: signing in, the ways to each page, light and dark.
import { useEffect, useRef, useState } from "preact/hooks";
import { get, signIn, signOut } from "./api";
import { FilesPage } from "./pages/files";
import { JobPage } from "./pages/job";
import { JobsPage } from "./pages/jobs";
import { KeysPage } from "./pages/keys";
import { NewJobPage } from "./pages/newjob";
import { PipelinesPage } from "./pages/pipelines";
import { QueuesPage } from "./pages/queues";
import { Problem } from "./parts";
import { useRoute, type Route } from "./route";
import type { JobList } from "./wire";

const PAGES = [
  ["jobs", "Jobs"],
  ["new", "New job"],
  ["pipelines", "Pipelines"],
  ["files", "Files"],
  ["queues", "Queues"],
  ["keys", "Keys"],
] as const;

export function App() {
  const [inside, setInside] = useState(false);
  const [refused, setRefused] = useState("");
  if (!inside) return <SignIn note={refused} done={() => setInside(true)} refused={(why) => (setRefused(why), setInside(false))} />;
  const leave = () => {
    signOut();
    setRefused("");
    setInside(false);
  };
  return <Inside leave={leave} />;
}

function SignIn({ note, done, refused }: { note: string; done: () => void; refused: (why: string) => void }) {
  const field = useRef<HTMLInputElement>(null);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => field.current?.focus(), []);
  const enter = async (event: Event) => {
    event.preventDefault();
    const secret = field.current?.value.trim() ?? "";
    if (!/^[\x21-\x7e]+$/.test(secret)) return setError(new Error("A key is one word, such as sk_…, as jos up or an administrator showed it."));
    setBusy(true);
    let asking = true;
    signIn(secret, () => {
      signOut();
      if (!asking) refused("This key is no longer known; it may have been revoked.");
    });
    try {
      await get<JobList>("/batch/jobs", { limit: 1 });
      asking = false;
      done();
    } catch (failed) {
      signOut();
      setError(failed as Error);
      setBusy(false);
    }
  };
  return (
    <main class="sign-in">
      <h1>JOS</h1>
      <form onSubmit={enter}>
        <label for="key">API key</label>
        <input id="key" name="key" type="password" autocomplete="current-password" ref={field} placeholder="sk_…" />
        <button class="primary" disabled={busy}>
          Sign in
        </button>
      </form>
      {note && !error && <p role="status">{note}</p>}
      <Problem error={error} />
      <p class="note">
        <code>jos up</code> shows the first key once and keeps it in the home folder; <code>jos keys create</code> makes another. The key stays in this
        page's memory and is gone when you close or reload it.
      </p>
    </main>
  );
}

function Inside({ leave }: { leave: () => void }) {
  const route = useRoute();
  const here = route.path[0] ?? "jobs";
  const main = useRef<HTMLElement>(null);
  const first = useRef(true);
  const place = route.path.join("/");
  useEffect(() => {
    document.title = `${PAGES.find(([name]) => name === here)?.[1] ?? "Job"} – JOS`;
    if (first.current) first.current = false;
    else main.current?.focus(); // so that a keyboard or a screen reader goes on at the new page
  }, [place]);
  useKeys();
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => (event.preventDefault(), main.current?.focus())}>
        To the content
      </a>
      <header>
        <a class="brand" href="#/jobs">
          JOS
        </a>
        <nav aria-label="Pages">
          {PAGES.map(([name, title]) => (
            <a key={name} href={`#/${name}`} aria-current={name === here ? "page" : undefined}>
              {title}
            </a>
          ))}
        </nav>
        <Shade />
        <button type="button" onClick={leave}>Sign out</button>
      </header>
      <main id="main" ref={main} tabIndex={-1}>
        <Page route={route} />
      </main>
    </>
  );
}

function Page({ route }: { route: Route }) {
  const [name = "jobs", id] = route.path;
  if (name === "jobs") return id ? <JobPage key={id} id={id} /> : <JobsPage query={route.query} />;
  if (name === "new") return <NewJobPage key={route.query.toString()} query={route.query} />;
  if (name === "pipelines") return <PipelinesPage id={id} />;
  if (name === "files") return <FilesPage name={id} />;
  if (name === "queues") return <QueuesPage />;
  if (name === "keys") return <KeysPage />;
  return (
    <>
      <h1>No such page</h1>
      <p>
        <a href="#/jobs">To the jobs</a>
      </p>
    </>
  );
}

/** Light, dark, or as the system has it; remembered by the browser, as nothing else is. */
function Shade() {
  const [shade, setShade] = useState(() => localStorage.getItem("jos.shade") ?? "auto");
  useEffect(() => {
    document.documentElement.dataset["shade"] = shade;
    localStorage.setItem("jos.shade", shade);
  }, [shade]);
  return (
    <label class="shade">
      <span class="hidden">Colours</span>
      <select value={shade} onChange={(event) => setShade(event.currentTarget.value)}>
        <option value="auto">Auto</option>
        <option value="light">Light</option>
        <option value="dark">Dark</option>
      </select>
    </label>
  );
}

/** g then j, n, p, f, q, k goes to a page; / to the search field. */
function useKeys(): void {
  useEffect(() => {
    let g = 0;
    const pressed = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName)) return;
      if (event.key === "g") g = event.timeStamp;
      else if (event.key === "/") {
        const search = document.querySelector<HTMLInputElement>("input[type=search]");
        if (search) (event.preventDefault(), search.focus());
      } else if (event.timeStamp - g < 1500) {
        const page = PAGES.find(([name]) => name.startsWith(event.key));
        if (page) location.hash = `/${page[0]}`;
        g = 0;
      }
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}
