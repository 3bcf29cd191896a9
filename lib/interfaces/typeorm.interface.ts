// TypeORM's types. The package is optional: where it is missing they are `any`, and declarations compile all the same.
/** @ts-ignore the compiler of a project without TypeORM finds no such module */
import type { DataSource as TypeormDataSource } from 'typeorm';

/** TypeORM's DataSource. */
export type DataSource = TypeormDataSource;
/** TypeORM's EntityManager. */
export type EntityManager = DataSource['manager'];
