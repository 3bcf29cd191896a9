// A DTO is made once: what @Transform does to a value must not be done to its result.
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import { Body, Injectable, type PipeTransform, UsePipes, ValidationPipe } from '@nestjs/common';
import { APP_PIPE } from '@nestjs/core';
import { Transform, Type } from 'class-transformer';
import { IsArray, IsInt, IsString, ValidateNested } from 'class-validator';
import { type JobsModuleOptions, JobsModule, Task, type TaskOptions } from '../../lib/index.js';
import { applicationsOnOneDatabase, type Applications, attempt } from '../support/app.js';

class Price {
  @IsInt()
  @Transform(({ value }) => Math.round((value as number) * 100))
  cents!: number;
}

class Order {
  @IsArray()
  @Transform(({ value }) => (value as string).split(','))
  tags!: string[];

  @ValidateNested()
  @Type(() => Price)
  price!: Price;
}

class Seen implements PipeTransform {
  transform(value: unknown): unknown {
    if (value instanceof Order) value.tags.push('seen');
    return value;
  }
}

const described = (order: Order): unknown => Object.assign({ isOrder: order instanceof Order }, order);

@Injectable()
class Orders {
  @Task('transforming')
  @UsePipes(new ValidationPipe({ transform: true, whitelist: true }))
  transforming(order: Order): unknown {
    return described(order);
  }

  @Task('checking')
  @UsePipes(new ValidationPipe({ whitelist: true }))
  checking(order: Order): unknown {
    return described(order);
  }

  @Task('followed')
  @UsePipes(new ValidationPipe({ transform: true }), new Seen())
  followed(order: Order): unknown {
    return order;
  }

  @Task('other-pipes')
  @UsePipes(new Seen())
  other(order: Order): unknown {
    return order;
  }

  @Task('in-parts', { payload: Order } as TaskOptions)
  @UsePipes(new ValidationPipe({ transform: true }))
  parts(@Body('price') price: Price): unknown {
    return price;
  }

  @Task('strict')
  @UsePipes(new ValidationPipe({ whitelist: true, forbidNonWhitelisted: true }))
  strict(order: Order): unknown {
    return order;
  }

  @Task('global')
  global(order: Order): unknown {
    return described(order);
  }
}

class Words {
  @IsString()
  text!: string;
}

@Injectable()
class ByOutput {
  @Task('output', {
    payload: {
      '~standard': { version: 1, vendor: 'test', validate: () => ({ value: { text: 'made by the schema' } }) },
    },
  })
  @UsePipes(new ValidationPipe({ transform: true }))
  run(words: Words): unknown {
    return words;
  }
}

const stored = { tags: 'a,b', price: { cents: 12.5 } };
const once = { tags: ['a', 'b'], price: { cents: 1_250 } };

let apps: Applications;
beforeAll(async () => (apps = await applicationsOnOneDatabase()));
afterEach(() => apps.close());
afterAll(() => apps.drop());

const start = (options: JobsModuleOptions = {}, providers: object[] = []) =>
  apps.start({
    imports: [JobsModule.forRoot({ connection: apps.database.url, worker: { pollIntervalMs: 50 }, ...options })],
    providers: [Orders, ByOutput, ...(providers as never[])],
  });

describe('ValidationPipe on a handler', () => {
  it.each([
    ['transforming', { ...once, isOrder: true }],
    ['checking', { ...once, isOrder: true }],
    ['followed', { ...once, tags: ['a', 'b', 'seen'] }],
    ['other-pipes', { ...once, tags: ['a', 'b', 'seen'] }],
    ['in-parts', once.price],
    ['output', { text: 'made by the schema' }],
  ])('transforms a payload once (%s)', async (task, result) => {
    const app = await start();
    expect(await attempt(app, task, stored)).toMatchObject({ status: 'completed', result });
  });

  it('transforms once where it is global, too', async () => {
    const pipe = { provide: APP_PIPE, useValue: new ValidationPipe({ transform: true, whitelist: true }) };
    const app = await start({ globalEnhancers: true }, [pipe]);
    expect(await attempt(app, 'global', stored)).toMatchObject({ result: { ...once, isOrder: true } });
  });

  it('removes what the DTO does not know, and its own refusals are kept with their reason', async () => {
    const app = await start();
    const extra = { ...stored, extra: 1 };
    expect(await attempt(app, 'checking', extra)).toMatchObject({ result: { ...once, isOrder: true } });
    expect(await attempt(app, 'strict', extra)).toMatchObject({
      status: 'failed',
      errorMessage: 'Bad Request Exception: property extra should not exist',
    });
  });
});
