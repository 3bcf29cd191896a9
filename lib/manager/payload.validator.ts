// Checks payloads by class-validator DTOs or any Standard Schema, and hands on what the schema makes of them.
import type { DtoClass, PayloadSchema, StandardResult, StandardSchema } from '../interfaces/task.interface.js';
import { MissingPackageError, PayloadValidationError, type PayloadIssue } from '../jobs.errors.js';

interface Violation {
  property: string;
  constraints?: Record<string, string>;
  children?: Violation[];
}

/** Where class-validator keeps what its decorators have said; one for all copies of it in a process. */
interface Constraints {
  getTargetValidationMetadatas(type: DtoClass, schema: string, always: boolean, strict: boolean): unknown[];
}

/** The part of the optional class-transformer that is used. */
interface Transformer {
  plainToInstance(type: DtoClass, plain: object): unknown;
}

/** The part of the optional class-validator that is used. */
interface Validator {
  validate(instance: object, options: object): Promise<unknown[]>;
}

/** A class without constraints is no fault: it only says what the payload looks like. */
const VALIDATION = { forbidUnknownValues: false };
const VALIDATOR = 'class-validator';
const TRANSFORMER = 'class-transformer';

const isObject = (value: unknown): value is object => typeof value === 'object' && value !== null;

/** What a DTO's instance was made of. */
const plainOf = new WeakMap<object, object>();

/** The payload that `instance` was made of by a DTO class, as it is stored; undefined for anything else. */
export const storedFormOf = (instance: unknown): object | undefined =>
  isObject(instance) ? plainOf.get(instance) : undefined;

/** The same for a part of such an instance. */
export function keepStoredForm(instance: unknown, stored: unknown): void {
  if (isObject(instance) && isObject(stored)) plainOf.set(instance, stored);
}

export class PayloadValidator {
  private transformer: Transformer | null = null;
  private validator: Validator | null = null;
  private loading: Promise<void> | null = null;
  private loaded = false;
  /** Why a package could not be loaded. */
  private reason: unknown;
  private readonly constrained = new WeakMap<DtoClass, boolean>();

  /**
   * The payload as the handler gets it: a DTO's instance, or the schema's output. A promise only where the schema's
   * check is one.
   *
   * @throws PayloadValidationError with every constraint that is not met
   * @throws MissingPackageError if a DTO needs a package that is not installed
   */
  validate(task: string, schema: PayloadSchema, payload: unknown): unknown {
    if (isStandardSchema(schema)) return bySchema(task, schema, payload);
    if (this.loaded) return this.byClass(task, schema, payload);
    return this.load().then(() => this.byClass(task, schema, payload));
  }

  /** Loads what checking by classes takes, as far as it is installed, so that the first payload need not wait. */
  async load(): Promise<void> {
    await (this.loading ??= this.loadPackages());
    this.loaded = true;
  }

  /**
   * What is missing to check payloads by the class, or to make instances of it; null where nothing is. Known once the
   * packages are loaded.
   */
  missingFor(task: string, type: DtoClass): MissingPackageError | null {
    const missing = [
      ...(!this.validator && this.constrains(type) ? [VALIDATOR] : []),
      ...(this.transformer ? [] : [TRANSFORMER]),
    ];
    if (!missing.length) return null;
    const needed = `Checking the payloads of task "${task}" by the class ${type.name}`;
    return new MissingPackageError(missing, needed, { cause: this.reason });
  }

  /** Whether the class, or one that it extends, carries constraints of class-validator. */
  constrains(type: DtoClass): boolean {
    let known = this.constrained.get(type);
    if (known === undefined) {
      known = (constraints()?.getTargetValidationMetadatas(type, '', true, false).length ?? 0) > 0;
      this.constrained.set(type, known);
    }
    return known;
  }

  /** Whether instances of DTO classes can be made here. */
  get makesInstances(): boolean {
    return this.transformer !== null;
  }

  /** On first use, and by import(): a top-level import would make both packages a must, and require() of ours fail. */
  private async loadPackages(): Promise<void> {
    const missing = (reason: unknown): null => {
      this.reason = reason;
      return null;
    };
    this.transformer = await import('class-transformer').catch(missing);
    this.validator = await import('class-validator').catch(missing);
  }

  private byClass(task: string, type: DtoClass, payload: unknown): unknown {
    const missing = this.missingFor(task, type);
    if (missing) throw missing;
    const constrained = this.constrains(type);
    if (typeof payload !== 'object' || payload === null || Array.isArray(payload)) {
      if (!constrained) return payload;
      throw new PayloadValidationError(task, [
        { path: '', message: `expected an object (${type.name}), got ${kindOf(payload)}` },
      ]);
    }
    const instance = this.transformer!.plainToInstance(type, payload) as object;
    plainOf.set(instance, payload);
    return constrained ? this.check(task, instance) : instance;
  }

  private async check(task: string, instance: object): Promise<object> {
    const violations = (await this.validator!.validate(instance, VALIDATION)) as Violation[];
    if (!violations.length) return instance;
    throw new PayloadValidationError(
      task,
      violations.flatMap((violation) => issuesOf(violation, '')),
    );
  }
}

const constraints = (): Constraints | undefined =>
  (globalThis as { classValidatorMetadataStorage?: Constraints }).classValidatorMetadataStorage;

/** Whether a schema speaks the Standard Schema interface; some libraries' schemas are functions, like classes. */
const isStandardSchema = (schema: PayloadSchema): schema is StandardSchema => '~standard' in schema;

function bySchema(task: string, schema: StandardSchema, payload: unknown): unknown {
  const result = schema['~standard'].validate(payload);
  return result instanceof Promise ? result.then((late) => outputOf(task, late)) : outputOf(task, result);
}

function outputOf(task: string, result: StandardResult<unknown>): unknown {
  if (!result.issues) return result.value;
  const issues = result.issues.map(({ message, path = [] }) => ({ path: path.map(segmentOf).join('.'), message }));
  throw new PayloadValidationError(task, issues);
}

const segmentOf = (segment: PropertyKey | { readonly key: PropertyKey }): string =>
  String(typeof segment === 'object' ? segment.key : segment);

function issuesOf({ property, constraints: broken = {}, children = [] }: Violation, parent: string): PayloadIssue[] {
  const path = parent ? `${parent}.${property}` : property;
  const own = Object.values(broken).map((message) => ({ path, message }));
  return [...own, ...children.flatMap((child) => issuesOf(child, path))];
}

const kindOf = (payload: unknown): string =>
  payload === null ? 'null' : Array.isArray(payload) ? 'an array' : typeof payload;
