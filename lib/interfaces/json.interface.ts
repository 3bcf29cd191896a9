// What becomes of a type on its way through JSON.

/** What JSON brings back of a `T`: of a Date its text, of a function nothing, of a Map an empty object. */
export type Stored<T> = 0 extends 1 & T
  ? T
  : T extends string | number | boolean | null | undefined | void
    ? T
    : T extends { toJSON(...args: any[]): infer J }
      ? Stored<J>
      : T extends bigint | symbol | ((...args: any[]) => unknown)
        ? never
        : T extends ReadonlyMap<any, any> | ReadonlySet<any>
          ? Record<string, never>
          : T extends readonly unknown[]
            ? { [K in keyof T]: Stored<T[K]> }
            : T extends object
              ? { [K in keyof T as T[K] extends symbol | ((...args: any[]) => unknown) ? never : K]: Stored<T[K]> }
              : unknown;
