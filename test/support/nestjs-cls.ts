// nestjs-cls and its plugins, as published. They are CommonJS and require() Nest, which is ESM: Node can do that, Jest only
// with Node 24.9 and later. So their require() is handed the modules that have been imported already.
import { jest } from '@jest/globals';
import * as common from '@nestjs/common';
import * as core from '@nestjs/core';
import * as exception from '@nestjs/core/errors/exceptions/unknown-dependencies.exception.js';
import * as injector from '@nestjs/core/injector/injector.js';

jest.mock('@nestjs/common', () => common);
jest.mock('@nestjs/core', () => core);
jest.mock('@nestjs/core/errors/exceptions/unknown-dependencies.exception', () => exception);
jest.mock('@nestjs/core/injector/injector', () => injector);

export const { ClsModule } = await import('nestjs-cls');
export const { ClsPluginTransactional, Transactional, TransactionHost } = await import('@nestjs-cls/transactional');
export const { TransactionalAdapterTypeOrm } = await import('@nestjs-cls/transactional-adapter-typeorm');
