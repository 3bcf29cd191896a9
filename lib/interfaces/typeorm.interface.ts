// TypeORM's types. The package is optional: where it is missing they are `any`, and declarations compile all the same.
/** @ts-ignore the compiler of a project without TypeORM finds no such module */
import type { DataSource } from 'typeorm';

export type { DataSource };
/** TypeORM's EntityManager. */
export type EntityManager = DataSource['manager'];
