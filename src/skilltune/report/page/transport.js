// The two transports of the page: data inlined in a report, or a server that is asked and that sends events.

const AGAIN_MS = 2_000; // pause before a stream that was refused is asked for again

/** The transport for the data in the page. Methods of a report answer at once, those of a server with a promise. */
export function openTransport(data) {
  return data.mode === "live" ? live() : inlined(data);
}

function inlined(data) {
  return {
    live: false,
    page: async () => data.page,
    transcript: async (id, key) => data.transcripts[key] || null,
    has: (key) => key in data.transcripts,
    about: data.about,
    image: (id, file) => (data.images || {})[file.hash] || null,
    file: () => null,
    follow: () => () => {},
  };
}

/** An answer of the server that is no success: its message, and how to go on. */
class Refused extends Error {
  constructor(message, fix, status = 0) {
    super(message);
    this.fix = fix;
    this.status = status;
  }
}

async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json", "X-Skilltune": "page" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new Refused("The server does not answer.", "Start it again with `skilltune ui`; the runs go on without it.");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(answer.error || `The server answered ${response.status}.`, answer.fix || "", response.status);
  return answer;
}

function live() {
  const run = (id) => `/api/runs/${encodeURIComponent(id)}`;
  return {
    live: true,
    runs: () => ask("/api/runs"),
    page: (id) => ask(run(id)),
    transcript: (id, key) =>
      ask(`${run(id)}/rollouts/${encodeURIComponent(key)}`).catch((error) => {
        if (error.status === 404) return null;
        throw error;
      }),
    has: () => true,
    image: (id, file) => `${run(id)}/files/${encodeURIComponent(file.hash)}`,
    file: (id, file) => `${run(id)}/files/${encodeURIComponent(file.hash)}`,
    actions: (id) => ask(`${run(id)}/actions`),
    act: (id, name, body) => ask(`${run(id)}/${encodeURIComponent(name)}`, body),
    offers: () => ask("/api/actions"),
    check: (body) => ask("/api/check", body),
    start: (body) => ask("/api/start", body),
    drafts: () => ask("/api/drafts"),
    draftsOf: (file) => ask(`/api/drafts/${encodeURIComponent(file)}`),
    review: (file, body) => ask(`/api/drafts/${encodeURIComponent(file)}`, body),
    follow: (id, hear) => (id === null ? follow("/api/events", "/api/runs", hear) : follow(`${run(id)}/events`, run(id), hear)),
  };
}

/**
 * Hear the events of a path: `hear(type, data)`. Returns a function that ends it.
 *
 * The browser connects again by itself, unless the server refused: `page` is then asked for the reason. A tab in the
 * background does not listen, because a browser keeps only six connections to a server, for all tabs together.
 */
function follow(path, page, hear) {
  let source = null;
  let timer = 0;
  const open = () => {
    source = new EventSource(path);
    for (const type of ["page", "log", "state", "runs", "gone", "problem"])
      source.addEventListener(type, (event) => hear(type, JSON.parse(event.data)));
    source.onopen = () => hear("connected", true);
    source.onerror = () => {
      hear("connected", false);
      if (source && source.readyState === EventSource.CLOSED) refused();
    };
    source.addEventListener("gone", () => source.close());
  };
  const close = () => {
    clearTimeout(timer);
    if (source) source.close();
    source = null;
  };
  const adapt = () => {
    if (document.hidden) close();
    else if (!source) open();
  };
  const again = () => {
    close();
    timer = setTimeout(adapt, AGAIN_MS);
  };
  const refused = () => ask(page).then(again, (error) => (error.status ? hear("problem", { error: error.message, fix: error.fix }) : again()));
  document.addEventListener("visibilitychange", adapt);
  adapt();
  return () => {
    document.removeEventListener("visibilitychange", adapt);
    close();
  };
}
