// Checks payloads by class-validator DTOs or any Standard Schema, and hands on what the schema makes of them.
import type { DtoClass, PayloadSchema, StandardResult, StandardSchema } from '../interfaces/task.interface.js';
import { MissingPackageError, PayloadValidationError, type PayloadIssue } from '../jobs.errors.js';

interface Violation {
  property: string;
  constraints?: Record<string, string>;
  children?: Violation[];
}

/** The part of the optional class-transformer and class-validator that is used. */
interface ClassPackages {
  plainToInstance: (type: DtoClass, plain: object) => object;
  validate: (instance: object, options: object) => Promise<Violation[]>;
  /** Whether the class, or one that it extends, carries constraints of its own. */
  hasConstraints: (type: DtoClass) => boolean;
}

/** A class without constraints is no fault: it only says what the payload looks like. */
const VALIDATION = { forbidUnknownValues: false };
const PACKAGES = ['class-validator', 'class-transformer'];

export class PayloadValidator {
  private packages: ClassPackages | null = null;
  private loading: Promise<ClassPackages> | null = null;

  /**
   * The payload as the handler gets it: a DTO's instance, or the schema's output. A promise only where the schema's
   * check is one.
   *
   * @throws PayloadValidationError with every constraint that is not met
   * @throws MissingPackageError if a DTO needs a package that is not installed
   */
  validate(task: string, schema: PayloadSchema, payload: unknown): unknown {
    if (isStandardSchema(schema)) return bySchema(task, schema, payload);
    if (this.packages) return byClass(task, schema, payload, this.packages);
    return this.load(schema).then((packages) => byClass(task, schema, payload, packages));
  }

  /** Whether DTO classes can be checked here; loads what that takes, so that the first payload need not wait. */
  async supportsClasses(): Promise<boolean> {
    return this.load().then(
      () => true,
      () => false,
    );
  }

  private load(type?: DtoClass): Promise<ClassPackages> {
    this.loading ??= loadPackages(type).then(
      (packages) => (this.packages = packages),
      (error: unknown) => {
        this.loading = null;
        throw error;
      },
    );
    return this.loading;
  }
}

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

function byClass(task: string, type: DtoClass, payload: unknown, packages: ClassPackages): unknown {
  const constrained = packages.hasConstraints(type);
  if (typeof payload !== 'object' || payload === null || Array.isArray(payload)) {
    if (!constrained) return payload;
    throw new PayloadValidationError(task, [
      { path: '', message: `expected an object (${type.name}), got ${kindOf(payload)}` },
    ]);
  }
  const instance = packages.plainToInstance(type, payload);
  return constrained ? checked(task, instance, packages) : instance;
}

async function checked(task: string, instance: object, { validate }: ClassPackages): Promise<object> {
  const violations = await validate(instance, VALIDATION);
  if (!violations.length) return instance;
  throw new PayloadValidationError(
    task,
    violations.flatMap((violation) => issuesOf(violation, '')),
  );
}

function issuesOf({ property, constraints = {}, children = [] }: Violation, parent: string): PayloadIssue[] {
  const path = parent ? `${parent}.${property}` : property;
  const own = Object.values(constraints).map((message) => ({ path, message }));
  return [...own, ...children.flatMap((child) => issuesOf(child, path))];
}

const kindOf = (payload: unknown): string =>
  payload === null ? 'null' : Array.isArray(payload) ? 'an array' : typeof payload;

/** On first use, and by import(): a top-level import would make both packages a must, and require() of ours fail. */
async function loadPackages(type?: DtoClass): Promise<ClassPackages> {
  try {
    const [{ plainToInstance }, { getMetadataStorage, validate }] = await Promise.all([
      import('class-transformer'),
      import('class-validator'),
    ]);
    const known = new WeakMap<DtoClass, boolean>();
    const hasConstraints = (dto: DtoClass): boolean => {
      if (!known.has(dto))
        known.set(dto, getMetadataStorage().getTargetValidationMetadatas(dto, '', true, false).length > 0);
      return known.get(dto)!;
    };
    return { plainToInstance, validate, hasConstraints };
  } catch (cause) {
    throw new MissingPackageError(PACKAGES, `Checking payloads by the class ${type?.name ?? ''}`, { cause });
  }
}
