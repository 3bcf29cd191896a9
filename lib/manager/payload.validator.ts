// Checks payloads by class-validator DTOs or any Standard Schema, and hands on what the schema makes of them.
import type { DtoClass, PayloadSchema, StandardSchema } from '../interfaces/task.interface.js';
import { PayloadValidationError, type PayloadIssue } from '../jobs.errors.js';

interface ConstraintViolation {
  property: string;
  constraints?: Record<string, string>;
  children?: ConstraintViolation[];
}

interface DtoPackages {
  plainToInstance: (type: DtoClass, plain: unknown) => object;
  validate: (value: object, options: object) => Promise<ConstraintViolation[]>;
}

export class PayloadValidator {
  private packages: Promise<DtoPackages | null> | null = null;

  /**
   * The payload as the handler gets it: a DTO's instance, or the schema's output.
   * @throws PayloadValidationError with every constraint that is not met
   */
  async validate(task: string, schema: PayloadSchema, payload: unknown): Promise<unknown> {
    return isStandardSchema(schema) ? bySchema(task, schema, payload) : this.byDto(task, schema, payload);
  }

  private async byDto(task: string, type: DtoClass, payload: unknown): Promise<unknown> {
    if (typeof payload !== 'object' || payload === null || Array.isArray(payload)) {
      const got = payload === null ? 'null' : Array.isArray(payload) ? 'an array' : `a ${typeof payload}`;
      throw new PayloadValidationError(task, [{ path: '', message: `expected an object (${type.name}), got ${got}` }]);
    }
    // Both are optional peers: without them no class can carry a constraint.
    this.packages ??= loadPackages();
    const packages = await this.packages;
    if (!packages) return payload;
    const instance = packages.plainToInstance(type, payload);
    const violations = await packages.validate(instance, { forbidUnknownValues: false });
    if (violations.length)
      throw new PayloadValidationError(
        task,
        violations.flatMap((one) => issuesOf(one, '')),
      );
    return instance;
  }
}

const isStandardSchema = (schema: PayloadSchema): schema is StandardSchema => '~standard' in schema;

async function bySchema(task: string, schema: StandardSchema, payload: unknown): Promise<unknown> {
  const result = await schema['~standard'].validate(payload);
  if (!result.issues) return result.value;
  const issues = result.issues.map(({ message, path = [] }) => ({ path: path.map(segmentOf).join('.'), message }));
  throw new PayloadValidationError(task, issues);
}

const segmentOf = (segment: PropertyKey | { readonly key: PropertyKey }): string =>
  String(typeof segment === 'object' ? segment.key : segment);

function issuesOf({ property, constraints = {}, children = [] }: ConstraintViolation, parent: string): PayloadIssue[] {
  const path = parent ? `${parent}.${property}` : property;
  const own = Object.values(constraints).map((message) => ({ path, message }));
  return [...own, ...children.flatMap((child) => issuesOf(child, path))];
}

async function loadPackages(): Promise<DtoPackages | null> {
  try {
    const [{ plainToInstance }, { validate }] = await Promise.all([
      import('class-transformer'),
      import('class-validator'),
    ]);
    return { plainToInstance, validate } as DtoPackages;
  } catch (error) {
    if ((error as { code?: string }).code === 'ERR_MODULE_NOT_FOUND') return null;
    throw error;
  }
}
