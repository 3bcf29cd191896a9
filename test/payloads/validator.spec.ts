import { describe, expect, it, jest } from '@jest/globals';
import { Exclude, Transform, Type } from 'class-transformer';
import {
  IsArray,
  IsDate,
  IsEmail,
  IsInt,
  IsOptional,
  IsString,
  Min,
  MinLength,
  registerDecorator,
  ValidateNested,
  ValidatorConstraint,
  type ValidatorConstraintInterface,
} from 'class-validator';
import { PayloadValidationError, type StandardSchema } from '../../lib/index.js';
import { PayloadValidator } from '../../lib/manager/payload.validator.js';

class Address {
  @IsString()
  @MinLength(2)
  city!: string;
}

class Recipient {
  @IsEmail()
  email!: string;

  @IsInt()
  @Min(18)
  age!: number;

  @ValidateNested()
  @Type(() => Address)
  address!: Address;
}

class Mail {
  @IsArray()
  @ValidateNested({ each: true })
  @Type(() => Recipient)
  recipients!: Recipient[];

  @IsOptional()
  @IsDate()
  @Type(() => Date)
  at?: Date;
}

const issuesOf = async (check: () => unknown): Promise<unknown> => {
  try {
    await check();
  } catch (error) {
    if (error instanceof PayloadValidationError) return error.issues;
    throw error;
  }
  return 'no error';
};

describe('a DTO', () => {
  const validator = new PayloadValidator();
  const validate = (type: new () => object, payload: unknown) => validator.validate('task', type, payload);

  it('makes instances, nested ones too', async () => {
    const payload = { recipients: [{ email: 'a@b.cd', age: 20, address: { city: 'Rome' } }], at: '2026-01-01' };
    const mail = (await validate(Mail, payload)) as Mail;
    expect(mail).toBeInstanceOf(Mail);
    expect(mail.recipients[0]!.address).toBeInstanceOf(Address);
    expect(mail.at).toEqual(new Date('2026-01-01'));
    expect(payload.at).toBe('2026-01-01');
  });

  it('names every constraint that is not met, with its path', async () => {
    const recipient = { email: 'x', age: 3, address: { city: 'R' } };
    expect(await issuesOf(() => validate(Mail, { recipients: [recipient, { ...recipient, address: 1 }] }))).toEqual([
      { path: 'recipients.0.email', message: 'email must be an email' },
      { path: 'recipients.0.age', message: 'age must not be less than 18' },
      { path: 'recipients.0.address.city', message: 'city must be longer than or equal to 2 characters' },
      { path: 'recipients.1.email', message: 'email must be an email' },
      { path: 'recipients.1.age', message: 'age must not be less than 18' },
      {
        path: 'recipients.1.address',
        message: 'nested property address must be either object or array',
      },
    ]);
  });

  it.each([
    [undefined, 'undefined'],
    [null, 'null'],
    ['text', 'string'],
    [7, 'number'],
    [[], 'an array'],
  ])('refuses %j', async (payload, kind) => {
    expect(await issuesOf(() => validate(Mail, payload))).toEqual([
      { path: '', message: `expected an object (Mail), got ${kind}` },
    ]);
  });

  it('without constraints only describes: it makes instances, and refuses nothing', async () => {
    class Plain {
      a!: number;

      double(): number {
        return this.a * 2;
      }
    }
    expect(((await validate(Plain, { a: 2 })) as Plain).double()).toBe(4);
    expect(await validate(Plain, null)).toBeNull();
    expect(await validate(Plain, [1])).toEqual([1]);
  });

  it('inherits constraints', async () => {
    class Base {
      @IsString()
      name!: string;
    }
    class Derived extends Base {}
    expect(await issuesOf(() => validate(Derived, {}))).toEqual([{ path: 'name', message: 'name must be a string' }]);
  });

  it('may carry nothing but transformations', async () => {
    class Shouting {
      @Transform(({ value }) => (value as string).toUpperCase())
      word!: string;

      @Exclude()
      secret?: string;
    }
    expect(await validate(Shouting, { word: 'x', secret: 'y' })).toEqual({ word: 'X' });
  });

  it('may have constraints that take their time', async () => {
    @ValidatorConstraint({ async: true })
    class Even implements ValidatorConstraintInterface {
      async validate(value: number): Promise<boolean> {
        return value % 2 === 0;
      }
    }
    class Numbered {
      value!: number;
    }
    registerDecorator({
      target: Numbered,
      propertyName: 'value',
      validator: Even,
      options: { message: 'must be even' },
    });
    expect(await issuesOf(() => validate(Numbered, { value: 3 }))).toEqual([
      { path: 'value', message: 'must be even' },
    ]);
    expect(await issuesOf(() => validate(Numbered, { value: 4 }))).toBe('no error');
  });
});

describe('a Standard Schema', () => {
  const validator = new PayloadValidator();
  const schemaOf = (validate: StandardSchema['~standard']['validate']): StandardSchema => ({
    '~standard': { version: 1, vendor: 'test', validate },
  });

  it('hands on its output, at once where it can', async () => {
    const doubling = schemaOf((value) => ({ value: (value as number) * 2 }));
    expect(validator.validate('task', doubling, 4)).toBe(8);
    const later = schemaOf(async (value) => ({ value: (value as number) * 2 }));
    expect(await validator.validate('task', later, 4)).toBe(8);
  });

  it('names every issue, with its path in either notation', async () => {
    const issues = [
      { message: 'too short', path: ['items', 0, { key: 'name' }] },
      { message: 'odd', path: [Symbol.for('s')] },
      { message: 'wrong' },
    ];
    const expected = [
      { path: 'items.0.name', message: 'too short' },
      { path: 'Symbol(s)', message: 'odd' },
      { path: '', message: 'wrong' },
    ];
    expect(
      await issuesOf(() =>
        validator.validate(
          'task',
          schemaOf(() => ({ issues })),
          {},
        ),
      ),
    ).toEqual(expected);
    expect(
      await issuesOf(() =>
        validator.validate(
          'task',
          schemaOf(async () => ({ issues })),
          {},
        ),
      ),
    ).toEqual(expected);
  });

  it('may be a function, as in arktype', () => {
    const schema = Object.assign(
      () => undefined,
      schemaOf((value) => ({ value })),
    );
    expect(validator.validate('task', schema as unknown as StandardSchema, 'x')).toBe('x');
  });

  it('that throws is a bug of the schema, and no verdict on the payload', () => {
    const broken = schemaOf(() => {
      throw new TypeError('oops');
    });
    expect(() => validator.validate('task', broken, {})).toThrow(TypeError);
  });
});

describe('without class-validator', () => {
  it('a DTO is refused with the command that installs it, and a schema works', async () => {
    jest.unstable_mockModule('class-validator', () => {
      throw Object.assign(new Error("Cannot find package 'class-validator'"), { code: 'ERR_MODULE_NOT_FOUND' });
    });
    jest.resetModules();
    const fresh = await import('../../lib/manager/payload.validator.js');
    const validator = new fresh.PayloadValidator();
    await expect(validator.validate('task', Mail, {})).rejects.toMatchObject({
      code: 'ERR_JOBS_MISSING_PACKAGE',
      message: expect.stringMatching(/class Mail needs class-validator, .* npm install class-validator/),
    });
    const schema: StandardSchema = { '~standard': { version: 1, vendor: 'test', validate: (value) => ({ value }) } };
    expect(validator.validate('task', schema, 1)).toBe(1);
  });
});
