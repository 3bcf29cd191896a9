// One worker process. The story starts several of them, and kills them.
import 'reflect-metadata';
import { NestFactory } from '@nestjs/core';
import { AppModule } from './app.module.js';

const app = await NestFactory.createApplicationContext(AppModule.as('worker'), { logger: ['error'] });
app.enableShutdownHooks();
process.send?.('ready');
// If the story ends without a word, so does this.
process.on('disconnect', () => void app.close());
