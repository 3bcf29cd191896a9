// Loaded before a worker: its clock goes wrong by SKEW_MS, as that of a machine without NTP.
const skew = Number(process.env.SKEW_MS ?? 0);
const RealDate = Date;
if (skew) {
  globalThis.Date = class extends RealDate {
    constructor(...parts) {
      if (parts.length === 0) super(RealDate.now() + skew);
      else super(...parts);
    }

    static now() {
      return RealDate.now() + skew;
    }
  };
}
