// API keys, for administrators. A new one is shown once, here, and is gone when the page is left.
import { useState } from "preact/hooks";
import { get, send } from "../api";
import { Copy, Pager, Problem, Sure, When } from "../parts";
import { usePoll } from "../poll";
import type { Key, KeyList } from "../wire";

const PAGE = 50;

export function KeysPage() {
  const [offset, setOffset] = useState(0);
  const { value, error, again } = usePoll((signal) => get<KeyList>("/keys", { offset, limit: PAGE }, signal), 0, [offset]);
  return (
    <>
      <h1>Keys</h1>
      <Problem error={error} />
      {value && <Create done={again} />}
      {value && (
        <table class="cards">
          <caption class="hidden">Keys of the organisation</caption>
          <thead>
            <tr>
              <th scope="col">Name</th>
              <th scope="col">Role</th>
              <th scope="col">Ends in</th>
              <th scope="col">Made</th>
              <th scope="col">
                <span class="hidden">Do</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {value.keys.map((key) => (
              <tr key={key.id}>
                <td>{key.name || "–"}</td>
                <td>{key.role}</td>
                <td>
                  <code>…{key.last4}</code>
                </td>
                <td>
                  <When time={key.created_at} />
                </td>
                <td>
                  <Sure label="Revoke" ask={`Revoke the key ${key.name || key.id}? Whoever uses it is out at once.`} act={() => send("DELETE", `/keys/${key.id}`).then(again)} />
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {value && <Pager what="keys" total={value.total} offset={offset} limit={PAGE} set={setOffset} />}
    </>
  );
}

function Create({ done }: { done: () => void }) {
  const [name, setName] = useState("");
  const [role, setRole] = useState("user");
  const [made, setMade] = useState<Key | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const create = async (event: Event) => {
    event.preventDefault();
    try {
      setMade(await send<Key>("POST", "/keys", { name, role }));
      setError(null);
      setName("");
      done();
    } catch (failed) {
      setError(failed as Error);
    }
  };
  return (
    <>
      <form class="row" onSubmit={create}>
        <label>
          Name <input value={name} maxLength={255} onInput={(event) => setName(event.currentTarget.value)} />
        </label>
        <label>
          Role{" "}
          <select value={role} onChange={(event) => setRole(event.currentTarget.value)}>
            <option>reader</option>
            <option>user</option>
            <option>admin</option>
          </select>
        </label>
        <button class="primary">Create a key</button>
      </form>
      <Problem error={error} />
      {made?.key && (
        <p class="made" role="status">
          Shown this once: <code>{made.key}</code> <Copy text={made.key} /> <button type="button" class="small" onClick={() => setMade(null)}>Done</button>
        </p>
      )}
    </>
  );
}
