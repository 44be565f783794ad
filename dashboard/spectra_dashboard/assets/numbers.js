"use strict";
// Numbers as sent: bytes in base64, as in Plotly's JSON or in our own rows and tables.
(() => {
  const KINDS = { i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array };

  function unpack(text, kind) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new KINDS[kind](bytes.buffer);
  }

  // rows of numbers that were packed with a shape of rows and columns
  function unpackRows(text, kind, [count, columns]) {
    const all = unpack(text, kind);
    return Array.from({ length: count }, (_, r) => all.subarray(r * columns, (r + 1) * columns));
  }

  // x or y of a trace, and its z
  const plain = (values) => Array.from(values?.bdata ? unpack(values.bdata, values.dtype) : values ?? []);
  const plainRows = (values) => (values?.bdata
    ? unpackRows(values.bdata, values.dtype, values.shape.split(",").map(Number))
    : values ?? []);

  const own = { unpack, unpackRows, plain, plainRows };
  window.spectra = Object.assign(window.spectra ?? {}, { numbers: own });
})();
