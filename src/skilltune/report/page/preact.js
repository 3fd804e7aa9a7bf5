// Preact with hooks and htm, from vendor/htm-preact.js. All markup of the page is made with `html`, which puts text in
// as text; nothing on the page is ever parsed as HTML.
export const { html, render, useState, useEffect, useLayoutEffect, useRef, useMemo, useErrorBoundary, Component } =
  globalThis.htmPreact;
