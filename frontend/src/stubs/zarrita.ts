/** Stands for a library that NiiVue uses for Zarr alone, which is never opened here. */
function absent(): never {
  throw new Error("Zarr is not part of this build");
}

export class FetchStore {
  constructor() {
    absent();
  }
}
export const open = Object.assign(absent, { v2: absent, v3: absent });
export const root = absent;
export const get = absent;
