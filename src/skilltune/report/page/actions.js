// What may be done with a run. Each action is confirmed in a dialog that states its cost or effect.
import { html, useEffect, useRef, useState } from "./preact.js";

/** The body of a request for the values of a form. */
function bodyOf(action, values) {
  if (action.name === "budget") return { [values.unit]: Number(values.amount) };
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== ""));
}

function Field({ field, value }) {
  if (field.choices)
    return html`<label>${field.label}<select name=${field.name} defaultValue=${value || field.choices[0]}>
      ${field.choices.map((choice) => html`<option value=${choice}>${choice}</option>`)}
    </select></label>`;
  return html`<label>${field.label}
    <input name=${field.name} type=${field.type || "text"} min=${field.min} step=${field.step} required=${field.required}
      placeholder=${field.placeholder} defaultValue=${value || ""} list=${field.offers ? `offers-${field.name}` : undefined} />
    ${field.offers ? html`<datalist id=${`offers-${field.name}`}>${field.offers.map((offer) => html`<option value=${offer}></option>`)}</datalist>` : null}
  </label>`;
}

/** A modal dialog. `confirm(values)` returns a promise. The dialog stays open if it is false, or if it fails: the error
 * is then shown. */
export function Dialog({ title, effect, fields, verb, confirm, close, disabled, children }) {
  const box = useRef(null);
  const [state, setState] = useState({ busy: false, error: null });
  const cancel = () => box.current.close(); // gives the focus back, and then calls `close`
  useEffect(() => box.current.showModal(), []);
  const submit = async (event) => {
    event.preventDefault();
    const values = Object.fromEntries(new FormData(event.target));
    setState({ busy: true, error: null });
    try {
      if ((await confirm(values)) !== false) box.current?.close();
    } catch (error) {
      setState({ busy: false, error });
    }
  };
  return html`<dialog ref=${box} aria-labelledby="dialog-title" onClose=${close}>
    <form onSubmit=${submit}>
      <h2 id="dialog-title">${title}</h2>
      <p>${effect}</p>
      ${children}
      ${(fields || []).length ? html`<div class="fields">${fields.map((field) => html`<${Field} field=${field} value=${field.value} />`)}</div>` : null}
      ${state.error ? html`<p class="bad" role="alert">${state.error.message}${state.error.fix ? html`<br />${state.error.fix}` : null}</p>` : null}
      <p class="buttons">
        <button type="button" class="quiet" onClick=${cancel}>Cancel</button>
        <button type="submit" class="main" disabled=${state.busy || disabled}>${state.busy ? "Working …" : verb}</button>
      </p>
    </form>
  </dialog>`;
}

/** The actions of a run as buttons. `state` is the run's state; the server is asked again when it changes. */
export function Actions({ id, transport, state }) {
  const [actions, setActions] = useState([]);
  const [chosen, setChosen] = useState(null);
  const [said, setSaid] = useState("");
  const ask = () => transport.actions(id).then(({ actions }) => setActions(actions), () => setActions([]));
  useEffect(() => {
    ask();
  }, [id, state]);
  if (!actions.some((action) => action.enabled)) return html`<span class="soft small" role="status">${said}</span>`;
  const confirm = async (values) => {
    const answer = await transport.act(id, chosen.name, bodyOf(chosen, values));
    setSaid(answer.path ? `${chosen.label}: ${answer.path}` : `${chosen.label}: done.`);
    ask();
  };
  return html`<div class="actions">
    ${actions.map(
      (action) => html`<button type="button" aria-disabled=${String(!action.enabled)} title=${action.enabled ? action.effect : action.why_not}
        onClick=${() => (action.enabled ? setChosen(action) : setSaid(`${action.label}: ${action.why_not}.`))}>${action.label} …</button>`,
    )}
    <span class="soft small" role="status">${said}</span>
    ${chosen
      ? html`<${Dialog} key=${chosen.name} title=${chosen.label} effect=${chosen.effect} fields=${chosen.fields} verb=${chosen.label}
          confirm=${confirm} close=${() => setChosen(null)} />`
      : null}
  </div>`;
}
