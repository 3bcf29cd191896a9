// Reads the public API from its types: every object of options that a function, a method or a constructor takes.
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

/** Where options go in, and the names they may have there. */
export interface OptionsPlace {
  /** `JobManager.listJobs(filter)`, `createWorkerPool(parts)`, `new JobsMigrator(options)`. */
  call: string;
  /** Properties that lead from the argument to the object; `*` is any name, `[]` an entry. */
  path: string[];
  names: string[];
  /** Those that may be left out, but may not be undefined. */
  neverUndefined: string[];
}

const root = fileURLToPath(new URL('../..', import.meta.url));
const ENTRIES = ['index', 'testing', 'embedded'];

/** Objects that are no options: made by the library, by users' own classes, or by other packages. */
const NO_OPTIONS = new Set(
  'Job ClaimedJob AddedJob TaskToken QueryExecutor StandardSchema NestContext PgPoolOptions PgClientOptions'.split(' '),
);
/** Made by the library alone. */
const NOT_CONSTRUCTED = new Set([
  'JobManager',
  'BulkActions',
  'WorkerPool',
  'JobContext',
  'BatchContext',
  'JobsTesting',
  'EncryptedValue',
]);
/** For pools and the testing kit, and methods that take a job, which has more than is asked of it. */
const INTERNAL = new Set(
  'JobEvents.emit JobEvents.hide JobManager.runWith JobManager.within JobContext.withSteps JobQueue.drop JobQueue.settleAndClaim BatchContext.complete BatchContext.fail BatchContext.snooze BatchContext.for'.split(
    ' ',
  ),
);

export function optionsPlaces(): OptionsPlace[] {
  const config = ts.readConfigFile(`${root}tsconfig.json`, (file) => ts.sys.readFile(file)).config as object;
  const { options } = ts.parseJsonConfigFileContent(config, ts.sys, root);
  const files = ENTRIES.map((name) => `${root}lib/${name}.ts`);
  const program = ts.createProgram(files, options);
  const reader = new Reader(program.getTypeChecker());
  return files.flatMap((file) => reader.exportsOf(program.getSourceFile(file)!));
}

class Reader {
  constructor(private readonly checker: ts.TypeChecker) {}

  exportsOf(source: ts.SourceFile): OptionsPlace[] {
    const module = this.checker.getSymbolAtLocation(source)!;
    return this.checker.getExportsOfModule(module).flatMap((symbol) => this.placesOf(symbol));
  }

  private placesOf(exported: ts.Symbol): OptionsPlace[] {
    const isAlias = (exported.flags & ts.SymbolFlags.Alias) !== 0;
    const symbol = isAlias ? this.checker.getAliasedSymbol(exported) : exported;
    const name = exported.getName();
    if (!(symbol.flags & ts.SymbolFlags.Value)) return [];
    const type = this.checker.getTypeOfSymbol(symbol);
    const calls = this.signatures(name, type.getCallSignatures());
    if (!(symbol.flags & ts.SymbolFlags.Class) || name.endsWith('Error')) return calls;
    const made = NOT_CONSTRUCTED.has(name) ? [] : this.signatures(`new ${name}`, type.getConstructSignatures());
    const instance = this.checker.getDeclaredTypeOfSymbol(symbol);
    return [...made, ...this.methods(name, type.getProperties()), ...this.methods(name, instance.getProperties())];
  }

  private methods(owner: string, members: ts.Symbol[]): OptionsPlace[] {
    return members.flatMap((member) => {
      const name = `${owner}.${member.getName()}`;
      const declaration = member.valueDeclaration;
      if (!declaration || !ts.isMethodDeclaration(declaration) || INTERNAL.has(name)) return [];
      if (ts.getCombinedModifierFlags(declaration) & ts.ModifierFlags.Private) return [];
      return this.signatures(name, this.checker.getTypeOfSymbol(member).getCallSignatures());
    });
  }

  private signatures(call: string, signatures: readonly ts.Signature[]): OptionsPlace[] {
    const places = signatures.flatMap((signature) =>
      signature.getParameters().flatMap((parameter) => {
        const type = this.checker.getTypeOfSymbol(parameter);
        return this.inside(`${call}(${parameter.getName()})`, [], type);
      }),
    );
    return [...new Map(places.map((place) => [`${place.call} ${place.path.join('.')}`, place])).values()];
  }

  private inside(call: string, path: string[], type: ts.Type): OptionsPlace[] {
    if (path.length > 4) return [];
    const parts = type.isUnion() ? type.types : [type];
    return parts.flatMap((part) => this.insidePart(call, path, part));
  }

  private insidePart(call: string, path: string[], type: ts.Type): OptionsPlace[] {
    const entry = this.checker.isArrayLikeType(type) ? type.getNumberIndexType() : undefined;
    // Entries of lists inside options are checked by rules of their own.
    if (entry) return path.length ? [] : this.inside(call, ['[]'], entry);
    if (type.getStringIndexType()) return this.inside(call, [...path, '*'], type.getStringIndexType()!);
    if (!this.isOptions(type)) return [];
    const properties = type.getProperties();
    const deeper = properties.flatMap((property) =>
      this.inside(call, [...path, property.getName()], this.checker.getTypeOfSymbol(property)),
    );
    const names = properties.map((property) => property.getName());
    const neverUndefined = properties.filter((property) => this.isNeverUndefined(property)).map((one) => one.getName());
    return [{ call, path, names, neverUndefined }, ...deeper];
  }

  private isNeverUndefined(property: ts.Symbol): boolean {
    return (property.getDeclarations() ?? []).some((declaration) => {
      if (!ts.isPropertySignature(declaration) || !declaration.questionToken || !declaration.type) return false;
      const type = this.checker.getTypeFromTypeNode(declaration.type);
      const takes = ts.TypeFlags.Undefined | ts.TypeFlags.Any | ts.TypeFlags.Unknown;
      return !(type.isUnion() ? type.types : [type]).some((part) => part.flags & takes);
    });
  }

  private isOptions(type: ts.Type): boolean {
    if (!(type.flags & (ts.TypeFlags.Object | ts.TypeFlags.Intersection)) || type.getCallSignatures().length)
      return false;
    if (type.isClass() || type.getConstructSignatures().length || !type.getProperties().length) return false;
    const parts = type.isIntersection() ? type.types : [type];
    const symbols = parts.map((part) => part.aliasSymbol ?? part.getSymbol());
    if (symbols.some((symbol) => symbol && NO_OPTIONS.has(symbol.getName()))) return false;
    const declarations = type.getProperties().flatMap((property) => property.getDeclarations() ?? []);
    return declarations.some((declaration) => declaration.getSourceFile().fileName.startsWith(`${root}lib/`));
  }
}
